-- A paused run waits until somebody retries or cancels it. It is suspended, and due in the far future: so a version that
-- knows no pause leaves it alone, too. (This needs in_time and index.)
local function is_paused(status, waits, due)
  return status == 'suspended' and waits == 'pause' and tonumber(due) > now
end

-- It goes on: a worker finds it, after some slack.
local function unpause(id, task, created, slack)
  redis.call('HSET', KEYS[1], 'due', now, 'waits', 'retry')
  redis.call('PERSIST', KEYS[1])  -- a restart that nobody has begun is not kept for ever
  redis.call('ZADD', KEYS[3], now + slack, id)
  leave(id, 'pause', task)
  enter(id, 'retry', task, created)
end

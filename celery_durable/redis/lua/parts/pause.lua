-- A paused run waits until somebody retries or cancels it. It is suspended, and due in the far future: so a version that
-- knows no pause leaves it alone, too. (This needs in_time and index.)
local function is_paused(status, waits, due)
  return status == 'suspended' and waits == 'pause' and tonumber(due) > now
end

-- It goes on: a worker finds it.
local function unpause(id, task, created)
  redis.call('HSET', KEYS[1], 'due', now, 'waits', 'retry')
  redis.call('ZADD', KEYS[3], now, id)
  leave(id, 'pause', task)
  enter(id, 'retry', task, created)
end

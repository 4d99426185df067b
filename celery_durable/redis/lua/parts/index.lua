-- The index: for each heading and task a sorted set of the ids of runs, by when they were created; and a sorted set of the
-- names of these, <heading>:<task>. The heading of a run is its status; if it is suspended, what it waits for. A run that is
-- running is found among the leases, and is in the index only if its process was lost, or has given it back.
local index = string.sub(KEYS[2], 1, -7) .. 'index'  -- KEYS[2] is <shard>leases

local function heading_of(status, waits)
  return status == 'suspended' and waits or status
end

local function leave(id, heading, task)
  redis.call('ZREM', index .. ':' .. heading .. ':' .. task, id)
end

local function enter(id, heading, task, created)
  local name = heading .. ':' .. task
  local key = index .. ':' .. name
  if redis.call('EXISTS', key) == 0 then redis.call('ZADD', index, 0, name) end
  -- A damaged journal may not say when. The run must be found all the same.
  redis.call('ZADD', key, tonumber(created) and created or redis.call('TIME')[1] * 1000, id)
end

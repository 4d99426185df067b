-- How many runs of a shard are under each heading, by task. Journals that have expired leave the index first.
-- KEYS index, leases
-- ARGV prefix of the keys of runs, most that leave at one time, how many are looked at besides, where (0 to 1)
-- Replies {<heading>:<task>, number, ...}
--include index
local prefix, most, besides, where = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local counts, lost, running = {}, {}, {}

local function count(name, number)
  counts[#counts + 1] = name
  counts[#counts + 1] = number
end

local function has_left(key, id)
  if redis.call('EXISTS', prefix .. id) == 1 then return false end
  redis.call('ZREM', key, id)
  most = most - 1
  return true
end

-- Runs of one task under one heading are kept for the same time. So the oldest expire first. But a run that has slept for
-- long is old, and is kept all the same, and those behind it expire before it.
local function let_go(key)
  while most > 0 do
    local oldest = redis.call('ZRANGE', key, 0, 0)[1]
    if not oldest or not has_left(key, oldest) then break end
  end
  if besides > 0 and most > 0 then
    local first = math.floor(where * math.max(0, redis.call('ZCARD', key) - besides + 1))
    for _, id in ipairs(redis.call('ZRANGE', key, first, first + besides - 1)) do has_left(key, id) end
  end
end

for _, name in ipairs(redis.call('ZRANGE', index, 0, -1)) do
  local key = index .. ':' .. name
  let_go(key)
  local number = redis.call('ZCARD', key)
  if number > 0 then count(name, number) else redis.call('ZREM', index, name) end
  lost[name] = number > 0
end

for _, id in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do
  local run = redis.pcall('HMGET', prefix .. id, 'status', 'task')
  local name = run[1] == 'running' and 'running:' .. run[2]
  -- One whose process only seemed to be lost is counted already.
  if name and not (lost[name] and redis.call('ZSCORE', index .. ':' .. name, id)) then
    running[name] = (running[name] or 0) + 1
  end
end
for name, number in pairs(running) do count(name, number) end
return counts

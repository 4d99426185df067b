-- How many runs of a shard are under each heading, by task. Journals that have expired leave the index first.
-- KEYS index, leases
-- ARGV prefix of the keys of runs, most that leave at one time
-- Replies {<heading>:<task>, number, ...}
--include index
local prefix, most = ARGV[1], tonumber(ARGV[2])
--include let_go
local counts, lost, running = {}, {}, {}

local function count(name, number)
  counts[#counts + 1] = name
  counts[#counts + 1] = number
end

for _, name in ipairs(redis.call('ZRANGE', index, 0, -1)) do
  local number = let_go(name)
  if number > 0 then count(name, number) end
  lost[name] = number > 0
end

for _, id in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do
  local run = redis.pcall('HMGET', prefix .. id, 'status', 'task')
  local name = run[1] == 'running' and run[2] and 'running:' .. run[2]
  -- One whose process only seemed to be lost is counted already.
  if name and not (lost[name] and redis.call('ZSCORE', index .. ':' .. name, id)) then
    running[name] = (running[name] or 0) + 1
  end
end
for name, number in pairs(running) do count(name, number) end
return counts

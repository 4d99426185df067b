-- Count some live runs of a shard by task, and by the build that began them.
-- KEYS index, leases   ARGV prefix of the keys of runs, how many of the index are passed over, most, heading, ...
-- Replies {how many of the index were looked at, {task, build, runs, stalled runs, when the oldest was created (ms), ...}}
--include index
local prefix, skip, most = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local looked_at, found, facts, asked = 0, {}, {}, {}
for i = 4, #ARGV do asked[ARGV[i]] = true end

local function count(run)
  local name = run[3] .. '\0' .. (run[4] or '')
  if not found[name] then
    found[name] = #facts
    for _, fact in ipairs({run[3], run[4] or '', 0, 0, run[5]}) do facts[#facts + 1] = fact end
  end
  local at = found[name]
  facts[at + 3] = facts[at + 3] + 1
  if run[2] == 'stall' then facts[at + 4] = facts[at + 4] + 1 end
  if tonumber(run[5]) < tonumber(facts[at + 5]) then facts[at + 5] = run[5] end
end

local function look_at(id, heading)
  local run = redis.pcall('HMGET', prefix .. id, 'status', 'waits', 'task', 'build', 'created')
  local is_whole = run[1] and run[3] and run[5]
  if is_whole and heading_of(run[1], run[2]) == heading then count(run) end
end

-- A run that is running is among the leases. Only if its process was lost, it is in the index instead.
if skip == 0 then
  for _, id in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do look_at(id, 'running') end
end
for _, name in ipairs(redis.call('ZRANGE', index, 0, -1)) do
  local key, heading = index .. ':' .. name, string.match(name, '^%a+')
  local number = asked[heading] and redis.call('ZCARD', key) or 0
  local some = math.min(math.max(0, number - skip), most - looked_at)
  if some > 0 then
    for _, id in ipairs(redis.call('ZRANGE', key, skip, skip + some - 1)) do
      looked_at = looked_at + 1
      if heading ~= 'running' or not redis.call('ZSCORE', KEYS[2], id) then look_at(id, heading) end
    end
  end
  skip = math.max(0, skip - number)
end
return {looked_at, facts}

-- Examine some runs of a shard: the index against the journals, who has runs, how large journals are.
-- KEYS index, leases, due
-- ARGV prefix of the keys of runs, most runs of each heading and task, most runs, where (0 to 1), most leases, how often a
--   run may be sent without an attempt
-- Replies {entries of the index, runs looked at, {flaw, id, ...}, {bytes, id, ...}, {process, 1 (its lease has lapsed), ...}}
--include index
local prefix, most_each, most, where = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local most_resent = tonumber(ARGV[6])
local entries, looked_at, flaws, sizes, holders = 0, 0, {}, {}, {}

local function is_in_a_set(id)
  return redis.call('ZSCORE', KEYS[2], id) or redis.call('ZSCORE', KEYS[3], id)
end

-- An outcome that can never be delivered is kept for a while, and is in neither set.
local function never_expires(id)
  return redis.pcall('PTTL', prefix .. id) == -1
end

local function flaw_of(id, heading, task)
  local run = redis.pcall('HMGET', prefix .. id, 'status', 'waits', 'task', 'delivered', 'resent')
  if run.err then return 'foreign' end
  if not run[1] then return 'gone' end
  local is_live = run[1] == 'running' or run[1] == 'suspended'
  if (is_live or not run[4]) and not is_in_a_set(id) and never_expires(id) then return 'stranded' end
  local is_over = not is_live and run[4]
  if (tonumber(run[5]) or 0) >= most_resent and not is_over then return 'in_vain' end
  if heading_of(run[1], run[2]) ~= heading or run[3] ~= task then return 'elsewhere' end
end

local function examine(id, heading, task)
  looked_at = looked_at + 1
  local flaw = flaw_of(id, heading, task)
  if flaw then
    flaws[#flaws + 1] = flaw
    flaws[#flaws + 1] = id
  end
  local size = redis.pcall('MEMORY', 'USAGE', prefix .. id)
  if type(size) == 'number' then
    sizes[#sizes + 1] = size
    sizes[#sizes + 1] = id
  end
end

-- Where there are many names, each examination begins with another one.
local names = redis.call('ZRANGE', index, 0, -1)
local begin = math.floor(where * #names)
for i = 1, #names do
  local name = names[(begin + i - 1) % #names + 1]
  local key = index .. ':' .. name
  local heading, task = string.match(name, '^(%a+):(.*)$')
  local number, some = redis.call('ZCARD', key), math.min(most_each, most - looked_at)
  entries = entries + number
  if number > 0 and some > 0 then
    local first = math.floor(where * math.max(0, number - some + 1))
    for _, id in ipairs(redis.call('ZRANGE', key, first, first + some - 1)) do examine(id, heading, task) end
  end
end

for i, id in ipairs(redis.call('ZRANGE', KEYS[2], 0, tonumber(ARGV[5]) - 1, 'WITHSCORES')) do
  if i % 2 == 1 then
    local owner = redis.pcall('HGET', prefix .. id, 'owner')
    holders[i] = type(owner) == 'string' and owner or ''
  else
    holders[i] = tonumber(id) <= now and 1 or 0
  end
end

return {entries, looked_at, flaws, sizes, holders}

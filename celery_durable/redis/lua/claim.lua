-- Find runs of a shard that nobody goes on with: their lease has lapsed, their wait is over, or their outcome was not
-- delivered. This claims them: of many workers that look, one finds a run and sends it. The next one may find it after
-- a pause, which grows.
-- KEYS leases, due   ARGV prefix of the keys of runs, most, two skips, pause ms, task, ..., until when
-- Replies {ms until the next wait is over or '', two skips for the next look, {ids of runs whose journal is gone},
--   {id, status, task, call, resume}, ...}
-- A skip passes over runs that are not ours, so the runs behind them are found.
--include in_time
local most, skips, pause = tonumber(ARGV[2]), {tonumber(ARGV[3]), tonumber(ARGV[4])}, tonumber(ARGV[5])
local longest = 24 * 3600000
local index = string.sub(KEYS[1], 1, -7) .. 'index'  -- see parts/index.lua
local ours = {}
for i = 6, #ARGV do ours[ARGV[i]] = true end

local found, lost, not_ours = {}, {}, 0

local function claim(id)
  local key = ARGV[1] .. id
  local run = redis.pcall('HMGET', key, 'status', 'delivered', 'v', 'task', 'call', 'resume', 'resent', 'created')
  if run.err then
    -- Under this key is something else. The other runs must still be found.
    not_ours = not_ours + 1
    return
  end
  local lease = redis.call('ZSCORE', KEYS[1], id)
  -- The library has taken a run out of both sets before its journal is deleted. So this one is lost.
  if not run[1] then lost[#lost + 1] = id end
  if not run[1] or run[2] then
    redis.call('ZREM', KEYS[1], id)
    redis.call('ZREM', KEYS[2], id)
  elseif lease and tonumber(lease) > now then
    redis.call('ZREM', KEYS[2], id)
  elseif tonumber(redis.call('ZSCORE', KEYS[2], id) or 0) > now then
    -- Its outcome could not be delivered: the pause counts, and not the lease of the worker that tried.
    redis.call('ZREM', KEYS[1], id)
  elseif (tonumber(run[3]) or 0) < 1 or not ours[run[4]] then
    not_ours = not_ours + 1
  else
    local resent = tonumber(run[7] or 0) or 0
    redis.call('HSET', key, 'resent', resent + 1)
    redis.call('ZREM', KEYS[1], id)
    redis.call('ZADD', KEYS[2], now + math.min(pause * 4 ^ math.min(resent, 20), longest), id)
    if run[1] == 'running' then
      redis.call('ZADD', index .. ':running:' .. run[4], tonumber(run[8]) and run[8] or now, id)
      redis.call('ZADD', index, 0, 'running:' .. run[4])
    end
    found[#found + 1] = {id, run[1], run[4], run[5], run[6] or ''}
  end
end

for i, key in ipairs(KEYS) do
  local ids = redis.call('ZRANGEBYSCORE', key, '-inf', now, 'LIMIT', skips[i], most)
  not_ours = 0
  for _, id in ipairs(ids) do claim(id) end
  skips[i] = #ids == most and skips[i] + not_ours or 0
end
local next = redis.call('ZRANGEBYSCORE', KEYS[2], '(' .. now, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
return {next[2] and tostring(math.floor(next[2] - now)) or '', skips[1], skips[2], lost, unpack(found)}

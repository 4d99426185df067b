-- How many runs of a shard should go on, or be delivered, and nobody goes on with them: a lease has lapsed, or a time has come.
-- KEYS leases, due   ARGV prefix of the keys of runs, ms for which they have waited at least
-- Replies {number, for how long the oldest of them has waited (ms), its id ('': there is none), its task}
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local latest = now - ARGV[2]
local number, oldest, oldest_id = 0, latest, ''
for _, key in ipairs(KEYS) do
  number = number + redis.call('ZCOUNT', key, '-inf', latest)
  local first = redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')
  if first[1] and tonumber(first[2]) <= oldest then oldest_id, oldest = first[1], tonumber(first[2]) end
end
local task = oldest_id ~= '' and redis.pcall('HGET', ARGV[1] .. oldest_id, 'task')
return {number, oldest_id ~= '' and now - oldest or 0, oldest_id, type(task) == 'string' and task or ''}

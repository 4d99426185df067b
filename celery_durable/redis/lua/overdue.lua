-- How many runs of a shard should go on, or be delivered, and nobody goes on with them: a lease has lapsed, or a time has come.
-- KEYS leases, due   Replies {number, for how long the oldest of them has waited (ms), its id ('': there is none)}
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local number, oldest, oldest_id = 0, now, ''
for _, key in ipairs(KEYS) do
  number = number + redis.call('ZCOUNT', key, '-inf', now)
  local first = redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')
  if first[1] and tonumber(first[2]) < oldest then oldest_id, oldest = first[1], tonumber(first[2]) end
end
return {number, now - oldest, oldest_id}

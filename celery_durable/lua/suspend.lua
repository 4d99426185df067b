-- Give the lease back and write when the run is to go on, with what the attempt still has to say.
-- KEYS run, leases, due   ARGV attempt, id, delay ms, field, value, ...   Replies 1, or 0 to a stale attempt
if redis.call('HGET', KEYS[1], 'attempt') ~= ARGV[1] then return 0 end
local time = redis.call('TIME')
local at = time[1] * 1000 + math.floor(time[2] / 1000) + tonumber(ARGV[3])
redis.call('HSET', KEYS[1], 'status', 'suspended', 'due', at, unpack(ARGV, 4))
redis.call('ZREM', KEYS[2], ARGV[2])
redis.call('ZADD', KEYS[3], at, ARGV[2])
return 1

-- Give the lease back and write when the run is to go on, with what the attempt still has to say.
-- KEYS run, leases, due   ARGV fence, id, delay ms, field, value, ...   Replies 1, 0 to a stale attempt, -1 where there is no journal
local fence = redis.call('HGET', KEYS[1], 'fence')
if fence ~= ARGV[1] then return fence and 0 or -1 end
local time = redis.call('TIME')
local at = time[1] * 1000 + math.floor(time[2] / 1000) + tonumber(ARGV[3])
redis.call('HSET', KEYS[1], 'status', 'suspended', 'due', at, unpack(ARGV, 4))
redis.call('ZREM', KEYS[2], ARGV[2])
redis.call('ZADD', KEYS[3], at, ARGV[2])
return 1

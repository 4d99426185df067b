-- End a run from outside its attempt (its process was killed by a hard time limit, or it was revoked), and fence it.
-- KEYS run, leases, due   ARGV id, status, ttl ms, field, value, ...   Replies 1, or 0 when there is no live run
local status = redis.call('HGET', KEYS[1], 'status')
if status ~= 'running' and status ~= 'suspended' then return 0 end
local time = redis.call('TIME')
redis.call('HSET', KEYS[1], 'status', ARGV[2], 'fence', '', 'delivered', 1,
           'ended', time[1] * 1000 + math.floor(time[2] / 1000), unpack(ARGV, 4))
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1

-- Write the outcome and deliver it in one act. This is for outcomes that have no consequence but a result, which is
-- stored in this Redis. The script stores it as Celery's backend would, so no worker can die between the two.
-- KEYS run, leases, due [, result]
-- ARGV fence, id, ttl ms, result, seconds it is kept (0: for ever), what a result begins with that stays, field, value, ...
-- Replies 1, 0 to a stale attempt or connection, -1 if there is no journal, the error by which Redis refuses the result
-- (then no outcome is written)
--include write
--include store_result
local run = redis.call('HMGET', KEYS[1], 'fence', 'task', 'created')
if run[1] ~= ARGV[1] then return run[1] and 0 or -1 end
local refused = KEYS[4] and store_result(KEYS[4], ARGV[4], ARGV[5], ARGV[6])
if refused then return refused end
local time = redis.call('TIME')
write(7, {'status', 'succeeded', 'ended', time[1] * 1000 + math.floor(time[2] / 1000), 'delivered', 1})
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('ZREM', KEYS[2], ARGV[2])
redis.call('ZREM', KEYS[3], ARGV[2])
-- parts/index.lua has more than is needed here, and this script runs once per task.
local index, name = string.sub(KEYS[2], 1, -7) .. 'index', 'succeeded:' .. run[2]
local key = index .. ':' .. name
if redis.call('EXISTS', key) == 0 then redis.call('ZADD', index, 0, name) end
redis.call('ZADD', key, run[3] or time[1] * 1000, ARGV[2])
redis.call('ZREM', index .. ':running:' .. run[2], ARGV[2])  -- its process may have seemed to be lost
return 1

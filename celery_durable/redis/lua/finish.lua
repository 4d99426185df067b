-- Write the outcome. The run stays among the leases, and has no TTL, until the outcome is delivered. So it is found if
-- its worker dies before that.
-- KEYS run, leases, due   ARGV fence, id, status, lease ms, field, value, ...
-- Replies 1, 0 to a stale attempt or connection or if the outcome is delivered, -1 if there is no journal
--include write
--include index
local run = redis.call('HMGET', KEYS[1], 'fence', 'delivered', 'status', 'waits', 'task', 'created')
if run[1] ~= ARGV[1] or run[2] then return run[1] and 0 or -1 end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
write(5, {'status', ARGV[3], 'ended', now})
redis.call('ZREM', KEYS[3], ARGV[2])
redis.call('ZADD', KEYS[2], now + tonumber(ARGV[4]), ARGV[2])
leave(ARGV[2], heading_of(run[3], run[4]), run[5])
enter(ARGV[2], ARGV[3], run[5], run[6])
return 1

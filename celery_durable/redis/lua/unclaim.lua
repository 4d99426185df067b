-- A claimed run could not be sent. It will be found again, unless another message has begun an attempt.
-- KEYS run, leases, due   ARGV id, pause ms   Replies 1, or 0 if an attempt has begun
if redis.call('HDEL', KEYS[1], 'resent') == 0 then return 0 end
local time = redis.call('TIME')
redis.call('ZADD', KEYS[3], time[1] * 1000 + math.floor(time[2] / 1000) + tonumber(ARGV[2]), ARGV[1])
return 1

-- A claimed run could not be sent: it is to be found again, unless an attempt has begun by another message.
-- KEYS run, leases, due   ARGV id, pause ms   Replies 1, or 0 where it is carried on
if redis.call('HDEL', KEYS[1], 'resent') == 0 then return 0 end
local time = redis.call('TIME')
redis.call('ZADD', KEYS[3], time[1] * 1000 + math.floor(time[2] / 1000) + tonumber(ARGV[2]), ARGV[1])
return 1

-- Give back the lease of an attempt that died, or is about to: a worker sends the run again at once.
-- KEYS run, leases, due   ARGV id, 'fence' or 'owner', its value
-- Replies 1, 0 where there is no journal; a run that another attempt carries on is left alone
local run = redis.call('HMGET', KEYS[1], 'status', 'delivered', ARGV[2])
if not run[1] then return 0 end
local over = run[1] ~= 'running' and run[2]
if run[3] == ARGV[3] and run[1] ~= 'suspended' and not over then
  local time = redis.call('TIME')
  redis.call('ZREM', KEYS[2], ARGV[1])
  redis.call('ZADD', KEYS[3], time[1] * 1000 + math.floor(time[2] / 1000), ARGV[1])
end
return 1

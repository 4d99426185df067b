-- End a run from outside of its attempts, and fence them: a hard time limit has killed its process, or it was revoked.
-- KEYS run, leases, due
-- ARGV id, fence, status, ttl ms, owner ('' for any), ms until another worker delivers the outcome (0: that is no task of
--   the journal), field, value, ..., until when
-- Replies 1, or 0 if there is no live run or if another process has it
--include in_time
--include index
local run = redis.call('HMGET', KEYS[1], 'status', 'fence', 'owner', 'waits', 'task', 'created', 'delivered')
local lease = tonumber(ARGV[6])
if run[1] ~= 'running' and run[1] ~= 'suspended' then
  -- 1: this call has ended it before. It is sent again because its reply was lost, or because its caller could
  -- not tell everybody.
  if run[2] ~= ARGV[2] then return 0 end
  if lease > 0 and not run[7] then redis.call('ZADD', KEYS[2], now + lease, ARGV[1]) end
  return 1
end
if ARGV[5] ~= '' and run[3] ~= ARGV[5] then return 0 end
redis.call('HSET', KEYS[1], 'status', ARGV[3], 'fence', ARGV[2], 'ended', now, unpack(ARGV, 7))
redis.call('ZREM', KEYS[3], ARGV[1])
if lease > 0 then
  redis.call('ZADD', KEYS[2], now + lease, ARGV[1])
else
  redis.call('HSET', KEYS[1], 'delivered', 1)
  redis.call('ZREM', KEYS[2], ARGV[1])
  redis.call('PEXPIRE', KEYS[1], ARGV[4])
end
leave(ARGV[1], heading_of(run[1], run[4]), run[5])
enter(ARGV[1], ARGV[3], run[5], run[6])
return 1

-- End a run from outside of its attempts, and fence them: a hard time limit has killed its process, or it was revoked.
-- KEYS run, leases, due   ARGV id, fence, status, ttl ms, owner ('' for any), field, value, ..., until when
-- Replies 1, or 0 if there is no live run or if another process has it
--include in_time
--include index
local run = redis.call('HMGET', KEYS[1], 'status', 'fence', 'owner', 'waits', 'task', 'created')
if run[1] ~= 'running' and run[1] ~= 'suspended' then
  -- 1: this call has ended it before. It is sent again because its reply was lost, or because its caller could
  -- not tell everybody.
  return run[2] == ARGV[2] and 1 or 0
end
if ARGV[5] ~= '' and run[3] ~= ARGV[5] then return 0 end
redis.call('HSET', KEYS[1], 'status', ARGV[3], 'fence', ARGV[2], 'delivered', 1,
           'ended', now, unpack(ARGV, 6))
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[4])
leave(ARGV[1], heading_of(run[1], run[4]), run[5])
enter(ARGV[1], ARGV[3], run[5], run[6])
return 1

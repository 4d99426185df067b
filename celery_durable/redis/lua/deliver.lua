-- This outcome needs nothing more: the result backend has it, and its callbacks and the like are sent.
-- KEYS run, leases, due   ARGV fence, id, ttl ms (0: delete the journal now), 1 (0: it can never be delivered)
-- Replies 1, or 0 to a stale attempt
-- The number of the connection does not matter: that it was delivered stays true.
--include index
local run = redis.call('HMGET', KEYS[1], 'fence', 'status', 'waits', 'task')
local fence = run[1]
if not fence or string.match(fence, '^[^:]*') ~= string.match(ARGV[1], '^[^:]*') then return 0 end
-- The server that has recorded the outcome is gone, and this one took over without it: another attempt ends the run.
if run[2] == 'running' or run[2] == 'suspended' then return 0 end
redis.call('ZREM', KEYS[2], ARGV[2])
redis.call('ZREM', KEYS[3], ARGV[2])
if ARGV[3] == '0' then
  redis.call('DEL', KEYS[1])
  leave(ARGV[2], heading_of(run[2], run[3]), run[4])
else
  if ARGV[4] == '1' then redis.call('HSET', KEYS[1], 'delivered', 1) end
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
end
return 1

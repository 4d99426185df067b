-- Prove that a process lives: it goes on with the run, or it delivers the outcome.
-- KEYS run, leases, due   ARGV fence, id, lease ms
-- Replies 1 (2 if the run was asked to cancel), 0 to a stale attempt, -1 if there is no journal
local run = redis.call('HMGET', KEYS[1], 'fence', 'status', 'cancel', 'delivered')
-- The number of the connection does not matter: the thread that renews leases has its own connection.
if not run[1] then return -1 end
if string.match(run[1], '^[^:]*') ~= string.match(ARGV[1], '^[^:]*') then return 0 end
if run[2] ~= 'suspended' and not run[4] then
  local time = redis.call('TIME')
  redis.call('ZADD', KEYS[2], time[1] * 1000 + math.floor(time[2] / 1000) + tonumber(ARGV[3]), ARGV[2])
  if run[2] == 'running' then redis.call('ZREM', KEYS[3], ARGV[2]) end
end
return run[3] == 'requested' and 2 or 1

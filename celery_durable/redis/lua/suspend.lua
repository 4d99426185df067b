-- Give the lease back, and write when the run goes on, with what the attempt has not written yet. A worker sends
-- the run again at that time and some slack later, unless a message of the broker has brought it back by then.
-- If Celery's results are in this Redis, the script also stores the state that callers and monitors see. So an attempt
-- that was frozen before it says so cannot replace the state of a run that has gone on without it.
-- KEYS run, leases, due [, result]
-- ARGV fence, id, delay ms, slack ms, 1 (it waits even if it was asked to cancel), result, seconds it is kept
--   (0: for ever), what a result begins with that stays, what it waits for, field, value, ...
-- Replies 1, 0 to a stale attempt or connection or if an outcome is delivered, -1 if there is no journal, the error by
-- which Redis refuses the result (then the run is not suspended)
--include write
--include store_result
--include index
local run = redis.call('HMGET', KEYS[1], 'fence', 'cancel', 'delivered', 'status', 'task', 'created')
if run[1] ~= ARGV[1] or run[3] then return run[1] and 0 or -1 end
-- The call was sent again, because its reply was lost. The wait has begun, and does not last longer for that.
if run[4] == 'suspended' then return 1 end
local refused = KEYS[4] and store_result(KEYS[4], ARGV[6], ARGV[7], ARGV[8])
if refused then return refused end
local delay, slack, waits = tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[9]
-- A run that was asked to cancel does not wait.
if run[2] == 'requested' and ARGV[5] ~= '1' then
  delay, slack = 0, 0
  if waits == 'pause' then waits = 'retry' end
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local at = now + delay
write(10, {'status', 'suspended', 'due', at, 'waits', waits, 'left', now})
leave(ARGV[2], run[4], run[5])
enter(ARGV[2], waits, run[5], run[6])
redis.call('ZREM', KEYS[2], ARGV[2])
redis.call('ZADD', KEYS[3], at + slack, ARGV[2])
return 1

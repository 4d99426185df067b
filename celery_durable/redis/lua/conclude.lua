-- Write the outcome and deliver it in one act, where nothing hangs on it but a result that is kept in this Redis: what
-- Celery's backend does to store one is done here, so that no moment lies between the two in which a worker can die.
-- KEYS run, leases, due [, result]   ARGV fence, id, ttl ms, result, seconds it is kept (0: for ever), field, value, ...
-- Replies 1, 0 to a stale attempt or connection, -1 where there is no journal, -2 where the result is refused: no outcome
-- is written
--include write
local fence = redis.call('HGET', KEYS[1], 'fence')
if fence ~= ARGV[1] then return fence and 0 or -1 end
if KEYS[4] then
  -- First: Redis takes nothing back of what a script has written.
  local set = ARGV[5] == '0' and redis.pcall('SET', KEYS[4], ARGV[4])
              or redis.pcall('SETEX', KEYS[4], ARGV[5], ARGV[4])
  if set.err then return -2 end
  local told = redis.pcall('PUBLISH', KEYS[4], ARGV[4])
  if type(told) == 'table' then return -2 end
end
local time = redis.call('TIME')
write(6, {'status', 'succeeded', 'ended', time[1] * 1000 + math.floor(time[2] / 1000), 'delivered', 1})
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('ZREM', KEYS[2], ARGV[2])
redis.call('ZREM', KEYS[3], ARGV[2])
return 1

-- Ask a live run to end by TaskCancelled. A run that waits goes on at once.
-- KEYS run, leases, due   ARGV id, until when   Replies {status before, when it has ended or ''}
--include in_time
local run = redis.call('HMGET', KEYS[1], 'status', 'cancel', 'ended')
local status = run[1]
if status ~= 'running' and status ~= 'suspended' then return {status or 'unknown', run[3] or ''} end
if not run[2] then
  redis.call('HSET', KEYS[1], 'cancel', 'requested')
  if status == 'suspended' then
    redis.call('HSET', KEYS[1], 'due', now)
    redis.call('ZADD', KEYS[3], now, ARGV[1])
  end
end
return {status, ''}

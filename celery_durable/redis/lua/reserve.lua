-- Say that a Retry is about to reopen a failed run (or, with 0 ms, that it is not): see redis/family.py.
-- KEYS run, leases, due
-- ARGV token of the Retry, ms, until when (Redis' clock) it is carried out
-- Replies 1, 0 if the run is not a failed one any more, or -1 if another Retry is about to reopen it
--include in_time
--include reserved
local token, keep = ARGV[1], tonumber(ARGV[2])
if redis.call('HGET', KEYS[1], 'status') ~= 'failed' then return 0 end
local holder = reserved_by()
if holder and holder ~= token then return -1 end
if keep > 0 then
  redis.call('HSET', KEYS[1], 'reserved', now + keep .. ' ' .. token)
else
  redis.call('HDEL', KEYS[1], 'reserved')
end
return 1

-- The outcome has reached the result backend, and what hangs on it has been sent.
-- KEYS run, leases, due   ARGV fence, id, ttl ms (0: delete the journal now)   Replies 1, or 0 to a stale attempt
if redis.call('HGET', KEYS[1], 'fence') ~= ARGV[1] then return 0 end
redis.call('ZREM', KEYS[2], ARGV[2])
redis.call('ZREM', KEYS[3], ARGV[2])
if ARGV[3] == '0' then
  redis.call('DEL', KEYS[1])
else
  redis.call('HSET', KEYS[1], 'delivered', 1)
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
end
return 1

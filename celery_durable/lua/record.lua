-- Write entries of the journal. Writing the same entry again (a lost reply) changes nothing.
-- KEYS run   ARGV attempt, field, value, ...   Replies 1, or 0 to a stale attempt
if redis.call('HGET', KEYS[1], 'attempt') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], unpack(ARGV, 2))
return 1

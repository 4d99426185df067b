-- Write entries of the journal. Writing the same entry again (a lost reply) changes nothing.
-- KEYS run   ARGV fence, field, value, ...   Replies 1, 0 to a stale attempt, -1 where there is no journal
local fence = redis.call('HGET', KEYS[1], 'fence')
if fence ~= ARGV[1] then return fence and 0 or -1 end
redis.call('HSET', KEYS[1], unpack(ARGV, 2))
return 1

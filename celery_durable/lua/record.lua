-- Write entries of the journal. Writing the same entry again (a lost reply) changes nothing.
-- KEYS run   ARGV fence, field, value, ...
-- Replies 1 (2 where the run is to be cancelled), 0 to a stale attempt, -1 where there is no journal
local run = redis.call('HMGET', KEYS[1], 'fence', 'cancel')
if run[1] ~= ARGV[1] then return run[1] and 0 or -1 end
redis.call('HSET', KEYS[1], unpack(ARGV, 2))
return run[2] == 'requested' and 2 or 1

-- Write entries of the journal. Writing the same entry again (a lost reply) changes nothing.
-- KEYS run   ARGV fence, field, value, ...
-- Replies 1 (2 where the run is to be cancelled), 0 to a stale attempt or connection, -1 where there is no journal
local run = redis.call('HMGET', KEYS[1], 'fence', 'cancel')
if run[1] ~= ARGV[1] then return run[1] and 0 or -1 end
-- Over the first connection of an attempt, whose fence has no number, nothing is sent twice, and all arrives in order: an
-- entry by itself comes after what it replaces. That is quicker than the usual way, which shows in each step.
if not ARGV[4] and not string.find(ARGV[1], ':', 1, true) then
  redis.call('HSET', KEYS[1], ARGV[2], ARGV[3])
else
  --include write
  write(2, {})
end
return run[2] == 'requested' and 2 or 1

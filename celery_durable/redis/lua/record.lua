-- Write entries of the journal. To write the same entry again, because a reply was lost, changes nothing.
-- KEYS run   ARGV fence, field, value, ...
-- Replies 1 (2 if the run was asked to cancel), 0 to a stale attempt or connection, -1 if there is no journal
local run = redis.call('HMGET', KEYS[1], 'fence', 'cancel')
if run[1] ~= ARGV[1] then return run[1] and 0 or -1 end
-- Over the first connection of an attempt, whose fence has no number, nothing is sent twice and all arrives in order.
-- So a single entry comes after the one that it replaces, and the script need not look at that one first. This makes
-- each step faster.
if not ARGV[4] and not string.find(ARGV[1], ':', 1, true) then
  redis.call('HSET', KEYS[1], ARGV[2], ARGV[3])
else
  --include write
  write(2, {})
end
return run[2] == 'requested' and 2 or 1

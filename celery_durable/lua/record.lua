-- Write entries of the journal. Writing the same entry again (a lost reply) changes nothing.
-- KEYS run   ARGV fence, field, value, ...
-- Replies 1 (2 where the run is to be cancelled), 0 to a stale attempt or connection, -1 where there is no journal
local run = redis.call('HMGET', KEYS[1], 'fence', 'cancel', ARGV[2])
if run[1] ~= ARGV[1] then return run[1] and 0 or -1 end
local held = run[3]
-- Most often it is one entry, which is not there yet, or has begun: what is quicker than the usual way shows in each step.
if not ARGV[4] and (not held or string.match(held, '"state":"(%a+)"') == 'started') then
  redis.call('HSET', KEYS[1], ARGV[2], ARGV[3])
else
  --include write
  write(2, {})
end
return run[2] == 'requested' and 2 or 1

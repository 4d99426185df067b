-- Keep who has done what with a run.
-- KEYS run, leases, due   ARGV what, who ('': nobody has said), until when
-- Replies 1, or 0 if it has no journal
--include in_time
--include action
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
keep_action(ARGV[1], ARGV[2], '')
return 1

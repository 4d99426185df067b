-- Keep who has done what with a run.
-- KEYS run, leases, due   ARGV id, what, who ('': nobody has said), name of the request, until when
-- Replies 1, or 0 if it has no journal
--include in_time
--include action
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
if not is_done(ARGV[4]) then keep_action(ARGV[2], ARGV[3], ARGV[4]) end
return 1

-- Keep who has done what with a run.
-- KEYS run, leases, due
-- ARGV id, what, who ('': nobody has said), name of the request, the run that came of it ('': none), until when
-- Replies 1, or 0 if it has no journal
--include in_time
--include action
if redis.call('HEXISTS', KEYS[1], 'status') == 0 then return 0 end
if not is_done(ARGV[4]) then keep_action(ARGV[2], ARGV[3], ARGV[4], ARGV[5] ~= '' and ARGV[5] or nil) end
return 1

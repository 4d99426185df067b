-- Keep who has done what with a run.
-- KEYS run, leases, due
-- ARGV id, what, who ('': nobody has said), name of the request, the run that came of it ('': none), until when
-- Replies 1, or 0 if it has no journal. Of a run that was purged, only the runs are kept that do the same work.
--include in_time
--include action
local kept = redis.call('HMGET', KEYS[1], 'status', 'purged')
if not kept[1] and (not kept[2] or ARGV[5] == '') then return 0 end
if not is_done(ARGV[4]) then keep_action(ARGV[2], ARGV[3], ARGV[4], ARGV[5] ~= '' and ARGV[5] or nil) end
return 1

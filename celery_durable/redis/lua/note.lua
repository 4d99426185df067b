-- Keep who has done what with a run.
-- KEYS run, leases, due   ARGV what, who ('': nobody has said), another run that came of it ('': none), until when
-- Replies 1, or 0 if it has no journal
--include in_time
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
local action = {what = ARGV[1], by = ARGV[2], at = now, run = ARGV[3] ~= '' and ARGV[3] or nil}
local actions = redis.call('HGET', KEYS[1], 'actions') or ''
redis.call('HSET', KEYS[1], 'actions', actions .. cjson.encode(action) .. '\n')
return 1

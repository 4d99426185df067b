-- Keep who has done what with a run.
-- KEYS run, leases, due   ARGV what, who ('': nobody has said), until when
-- Replies 1, or 0 if it has no journal
--include in_time
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
local action = cjson.encode({what = ARGV[1], by = ARGV[2], at = now})
redis.call('HSET', KEYS[1], 'actions', (redis.call('HGET', KEYS[1], 'actions') or '') .. action .. '\n')
return 1

-- Let a paused run go on: somebody has retried it, or the restart is noted for which it was planted.
-- KEYS run, leases, due
-- ARGV id, name of this request, attempt after which it was paused, fields that the Retry takes back,
--   slack ms, what somebody does ('': that is not kept), who ('': nobody has said), until when
-- Replies 1 (this request has done it), or 0 if the run is not paused after that attempt any more
--include in_time
--include index
--include pause
--include take_back
--include action
local run = redis.call('HMGET', KEYS[1], 'status', 'waits', 'due', 'attempt', 'task', 'created', 'reopened')
local reopened = run[7] or '\n'
if string.find(reopened, '\n' .. ARGV[2] .. '\n', 1, true) then return 1 end
if not is_paused(run[1], run[2], run[3]) or run[4] ~= ARGV[3] then return 0 end
redis.call('HSET', KEYS[1], 'reopened', reopened .. ARGV[2] .. '\n')
take_back(ARGV[4])
unpause(ARGV[1], run[5], run[6], tonumber(ARGV[5]))
if ARGV[6] ~= '' then keep_action(ARGV[6], ARGV[7], ARGV[2]) end
return 1

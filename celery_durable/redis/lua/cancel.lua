-- Ask a live run to end by TaskCancelled. A run that waits goes on at once.
-- KEYS run, leases, due
-- ARGV id, what somebody does, who ('': nobody has said), name of the request ('': that is not kept), until when
-- Replies {status before this request, when it has ended or ''}
--include in_time
--include index
--include pause
--include action
local run = redis.call('HMGET', KEYS[1], 'status', 'cancel', 'ended', 'waits', 'due', 'task', 'created')
local status = run[1]
-- (It may have been paused once more, or have ended.)
if ARGV[4] ~= '' and is_done(ARGV[4]) then return {'suspended', ''} end
if status ~= 'running' and status ~= 'suspended' then return {status or 'unknown', run[3] or ''} end
if not run[2] then redis.call('HSET', KEYS[1], 'cancel', 'requested') end
if is_paused(status, run[4], run[5]) then
  -- Its code may have been told before, and has failed since: then it goes on with that.
  unpause(ARGV[1], run[6], run[7], 0)
elseif not run[2] and status == 'suspended' then
  redis.call('HSET', KEYS[1], 'due', now)
  redis.call('ZADD', KEYS[3], now, ARGV[1])
end
if ARGV[4] ~= '' then keep_action(ARGV[2], ARGV[3], ARGV[4]) end
return {status, ''}

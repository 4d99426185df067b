-- Delete the journal of a run that has ended, and whose outcome is delivered. A mark stays for as long as the journal would
-- have: a message of the run that comes late, or a copy of one, begins it no more. It names the runs that do the same work.
-- KEYS run, leases, due   ARGV id, until when
-- Replies its status ('unknown': it has no journal), and whether it was deleted (1)
--include in_time
--include index
--include action
local run = redis.call('HMGET', KEYS[1], 'status', 'delivered', 'task', 'seed', 'ancestors', 'actions')
local status = run[1] or 'unknown'
local is_live = status == 'running' or status == 'suspended'
if not run[1] or is_live or not run[2] then return {status, 0} end
local ttl = redis.pcall('PTTL', KEYS[1])
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'purged', now, 'seed', run[4] or '')
if run[5] then redis.call('HSET', KEYS[1], 'ancestors', run[5]) end
for line in string.gmatch(run[6] or '', '[^\n]+') do
  local is_whole, action = pcall(cjson.decode, line)  -- a damaged journal is purged, too
  if is_whole and type(action) == 'table' and type(action.run) == 'string' then
    keep_action(tostring(action.what), '', nil, action.run)
  end
end
redis.call('PEXPIRE', KEYS[1], type(ttl) == 'number' and ttl > 0 and ttl or 24 * 3600000)
leave(ARGV[1], status, run[3])
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('ZREM', KEYS[3], ARGV[1])
return {status, 1}

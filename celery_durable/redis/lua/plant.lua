-- Write the journal of a run that no attempt has opened here: it restarts another run and is paused, or it was exported
-- after it had ended. It is kept for so long, unless a paused run goes on before.
-- KEYS run, leases, due
-- ARGV id, ttl ms, what somebody does, who ('': nobody has said), name of the request, field, value, ..., until when
-- Replies 1 (this request has done it), or 0 if the id has a journal
--include in_time
--include index
--include action
local mark = redis.call('HMGET', KEYS[1], 'purged', 'actions')
if mark[1] then redis.call('DEL', KEYS[1]) end
if redis.call('EXISTS', KEYS[1]) == 1 then return is_done(ARGV[5]) and 1 or 0 end
-- Lua cannot give so many arguments to a call at once.
for first = 6, #ARGV, 1000 do
  redis.call('HSET', KEYS[1], unpack(ARGV, first, math.min(first + 999, #ARGV)))
end
local run = redis.call('HMGET', KEYS[1], 'status', 'waits', 'task', 'created')
if run[1] == 'suspended' then
  redis.call('HSET', KEYS[1], 'created', now, 'opened', now, 'left', now, 'due', now + tonumber(ARGV[2]))
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
-- It was restarted after it was exported.
local actions = redis.call('HGET', KEYS[1], 'actions') or ''
for line in string.gmatch(mark[1] and mark[2] or '', '[^\n]+') do
  local restart = cjson.decode(line)
  if not string.find(actions, cjson.encode(restart.run), 1, true) then
    keep_action(restart.what, '', nil, restart.run)
  end
end
keep_action(ARGV[3], ARGV[4], ARGV[5])
enter(ARGV[1], heading_of(run[1], run[2]), run[3], run[4] or now)
return 1

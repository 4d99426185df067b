-- Keep that another run restarts this one, unless somebody else was faster: then the two would do the same work at once.
-- KEYS run, leases, due
-- ARGV id, what, who ('': nobody has said), the other run, the newest of such runs that the caller knows ('': none),
--   until when
-- Replies 1, or 0 if it lives again or was restarted in the meantime. A journal that is gone keeps nothing, and forbids
-- nothing; one that was purged keeps the other run.
--include in_time
--include action
local run = redis.call('HMGET', KEYS[1], 'status', 'actions', 'purged')
if not run[1] then
  if run[3] then keep_action(ARGV[2], '', nil, ARGV[4]) end
  return 1
end
local newest = ''
for line in string.gmatch(run[2] or '', '[^\n]+') do
  local other = cjson.decode(line).run
  if other == ARGV[4] then return 1 end  -- the reply of this very call was lost
  newest = other or newest
end
if run[1] == 'running' or run[1] == 'suspended' or newest ~= ARGV[5] then return 0 end
keep_action(ARGV[2], ARGV[3], nil, ARGV[4])
return 1

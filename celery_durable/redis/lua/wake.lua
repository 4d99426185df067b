-- End the wait of a suspended run now. A sleep that is not over ends with it.
-- KEYS run, leases, due   ARGV id, what somebody does, who ('': nobody has said), name of the request, until when
-- Replies its status before this request ('unknown': it has no journal; 'pause': it is paused, and stays so)
--include in_time
--include index
--include pause
--include action
local run = redis.call('HMGET', KEYS[1], 'status', 'waits', 'due')
local status = run[1] or 'unknown'
if is_done(ARGV[4]) then return 'suspended' end  -- that wait is over, and another one may have begun
if status ~= 'suspended' then return status end
if is_paused(status, run[2], run[3]) then return 'pause' end
local fields = redis.call('HGETALL', KEYS[1])
for i = 1, #fields, 2 do
  local entry = string.sub(fields[i], 1, 5) == 'step:' and fields[i + 1]
  if entry and string.match(entry, '"state":"(%a+)"') == 'sleeping' then
    -- (A quote inside a step's name is escaped, so the patterns find the entry's own facts.)
    local ends = tonumber(string.match(entry, '"until":(%d+)'))
    if ends > now then
      redis.call('HSET', KEYS[1], fields[i], (string.gsub(entry, '"until":%d+', '"until":' .. now, 1)))
    end
  end
end
redis.call('HSET', KEYS[1], 'due', now)
redis.call('ZADD', KEYS[3], now, ARGV[1])
keep_action(ARGV[2], ARGV[3], ARGV[4])
return status

-- End the wait of a suspended run now. A sleep that is not over ends with it.
-- KEYS run, leases, due   ARGV id, number of the attempt that has left it so, until when
-- Replies its status before ('unknown': it has no journal; 'pause': it is paused, and stays so)
--include in_time
--include index
--include pause
local run = redis.call('HMGET', KEYS[1], 'status', 'waits', 'due', 'attempt')
local status = run[1] or 'unknown'
if status ~= 'suspended' then return status end
if run[4] ~= ARGV[2] then return status end  -- that wait is over, and another one has begun
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
return status

-- End the wait of a suspended run now. A sleep that is not over ends with it. A run that nobody would go on with, or whose
-- outcome nobody would deliver, is sent by a worker.
-- KEYS run, leases, due   ARGV id, what somebody does, who ('': nobody has said), name of the request, until when
-- Replies its status before this request ('unknown': it has no journal; 'pause': it is paused, and stays so)
--include in_time
--include index
--include pause
--include action
local run = redis.call('HMGET', KEYS[1], 'status', 'waits', 'due', 'delivered')
local status = run[1] or 'unknown'
if is_done(ARGV[4]) then return 'suspended' end  -- that wait is over, and another one may have begun

local function wake()
  redis.call('HDEL', KEYS[1], 'resent')  -- it was sent in vain, perhaps: the pauses begin again
  redis.call('ZADD', KEYS[3], now, ARGV[1])
  keep_action(ARGV[2], ARGV[3], ARGV[4])
  return 'suspended'
end

if status ~= 'suspended' then
  local is_over = not run[1] or (status ~= 'running' and run[4])
  local lease = redis.call('ZSCORE', KEYS[2], ARGV[1])
  local has_worker = lease and tonumber(lease) > now
  -- An outcome that can never be delivered is kept for a while, and has a TTL.
  if is_over or has_worker or redis.pcall('PTTL', KEYS[1]) ~= -1 then return status end
  redis.call('ZREM', KEYS[2], ARGV[1])
  return wake()
end
if is_paused(status, run[2], run[3]) then return 'pause' end
-- A sleep beside a step that waits for its retry goes on.
local fields = (run[2] or 'sleep') == 'sleep' and redis.call('HGETALL', KEYS[1]) or {}
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
return wake()

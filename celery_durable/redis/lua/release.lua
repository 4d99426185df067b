-- Give back the lease of a process that has died, or is about to: a worker sends the run again at once.
-- KEYS run, leases, due   ARGV id, 'fence' or 'owner', its value, 1 if that is no sign of a poison pill
-- Replies 1 if the run goes on, or if this process has ended it by a failure, which is delivered; 3 if its success is
-- delivered; 2 if another process has ended it in another way; 0 if there is no journal
--include index
local run = redis.call('HMGET', KEYS[1], 'status', 'delivered', ARGV[2], 'attempt', 'task', 'created')
if not run[1] then return 0 end
local held, value = run[3] or '', ARGV[3]
if ARGV[2] == 'fence' then
  -- The number of the connection does not matter.
  held, value = string.match(held, '^[^:]*'), string.match(value, '^[^:]*')
end
local own, live = held == value, run[1] == 'running' or run[1] == 'suspended' or not run[2]
if own and live and run[1] ~= 'suspended' then
  -- A renewal may be under way. Without a fence it does not take the lease again.
  redis.call('HSET', KEYS[1], 'fence', '')
  local time = redis.call('TIME')
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  if ARGV[4] == '1' then redis.call('HSET', KEYS[1], 'progress', run[4], 'left', now) end
  redis.call('ZREM', KEYS[2], ARGV[1])
  redis.call('ZADD', KEYS[3], now, ARGV[1])
  if run[1] == 'running' then enter(ARGV[1], run[1], run[5], run[6]) end
end
if live then return 1 end
return run[1] == 'succeeded' and 3 or own and 1 or 2

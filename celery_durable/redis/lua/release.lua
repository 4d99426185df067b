-- Give back what a process held of a run that dies, or is about to: a worker sends the run again at once.
-- KEYS run, leases, due   ARGV id, 'fence' or 'owner', its value, 1 if that is no sign of a poison pill
-- Replies 1 where the run goes on, or that process has ended it by a failure that was delivered; 3 where its success was
-- delivered; 2 where another process has ended it otherwise; 0 where there is no journal
local run = redis.call('HMGET', KEYS[1], 'status', 'delivered', ARGV[2], 'attempt')
if not run[1] then return 0 end
local held, value = run[3] or '', ARGV[3]
if ARGV[2] == 'fence' then
  -- Over whichever connection.
  held, value = string.match(held, '^[^:]*'), string.match(value, '^[^:]*')
end
local own, live = held == value, run[1] == 'running' or run[1] == 'suspended' or not run[2]
if own and live and run[1] ~= 'suspended' then
  -- Without a fence no renewal that is under way takes the lease again.
  redis.call('HSET', KEYS[1], 'fence', '')
  if ARGV[4] == '1' then redis.call('HSET', KEYS[1], 'progress', run[4]) end
  local time = redis.call('TIME')
  redis.call('ZREM', KEYS[2], ARGV[1])
  redis.call('ZADD', KEYS[3], time[1] * 1000 + math.floor(time[2] / 1000), ARGV[1])
end
if live then return 1 end
return run[1] == 'succeeded' and 3 or own and 1 or 2

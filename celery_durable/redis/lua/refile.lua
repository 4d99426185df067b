-- A run is not under this heading of the index: its journal says another one, or is gone.
-- KEYS run, leases   ARGV id, heading, task
-- Replies 1 if it has left that heading, 0 if it had, or if its journal says that heading now. Under its key may be
-- something else: then it stays, so that people are told.
--include index
local run = redis.pcall('HMGET', KEYS[1], 'status', 'waits', 'task', 'created')
if run.err then return 0 end
local heading = run[1] and heading_of(run[1], run[2])
if heading == ARGV[2] and run[3] == ARGV[3] then return 0 end
if heading then enter(ARGV[1], heading, run[3], run[4]) end
return redis.call('ZREM', index .. ':' .. ARGV[2] .. ':' .. ARGV[3], ARGV[1])

-- Begin an attempt of a run, or say why not. The script takes the lease and raises the fence in one act.
-- KEYS run, leases, due
-- ARGV id, fence, lease ms, layout, task, fingerprint, call, seed, nesting, fresh, changed, wake_up, owner, reopen,
--   build, load, attempt that a Retry is about, fields that it takes back, length of the field "actions" when that was
--   decided, token with which the Retry has reserved the run ('': it need not), until when (Redis' clock) it is carried
--   out
-- Replies {'open', attempt, now, recoveries, reopened} | {'finished'} | {'id_conflict', task} | {'unreadable', layout}
--       | {'replaced', ms} | {'busy', ms} | {'early', ms, what it waits for} | {'outdated'} | {'purged'}
--       | {'failed', now}
-- The last element, if it is asked for, is the journal of a run that was there before.
--include in_time
local run, leases, due = KEYS[1], KEYS[2], KEYS[3]
local id, fence, lease = ARGV[1], ARGV[2], tonumber(ARGV[3])
local layout, task, fingerprint, call, seed = ARGV[4], ARGV[5], ARGV[6], ARGV[7], ARGV[8]
local build = ARGV[15]
local nesting, fresh, changed, wake_up = tonumber(ARGV[9]), ARGV[10] == '1', tonumber(ARGV[11]), ARGV[12] == '1'

local function create()
  -- The first entry of a branch brings a newer layout.
  redis.call('HSET', run, 'v', 1, 'task', task, 'fingerprint', fingerprint, 'call', call, 'seed', seed,
             'nesting', nesting, 'created', now, 'opened', now, 'status', 'running', 'attempt', 1, 'recoveries', 0,
             'fence', fence, 'owner', ARGV[13], 'build', build)
  redis.call('ZREM', due, id)
  redis.call('ZADD', leases, now + lease, id)
  return {'open', 1, now, 0, 0}
end

-- Most runs are new.
local found = redis.call('HMGET', run, 'status', 'purged')
if not found[1] then
  if found[2] then
    -- A retry that the broker has kept, a copy, a wake-up. Only who sends the id once more begins the run again.
    -- (Not every broker marks a copy, but it has the same seed.)
    if wake_up or not fresh or redis.call('HGET', run, 'seed') == seed then return {'purged'} end
    redis.call('DEL', run)
  end
  -- This message was sent for a run that had a journal: the run has ended, and its journal is deleted.
  if wake_up then return {'finished'} end
  return create()
end

--include index
local known = redis.call('HMGET', run, 'status', 'v', 'task', 'fingerprint', 'nesting', 'attempt', 'fence', 'due',
                         'progress', 'recoveries', 'changed', 'stalled', 'waits', 'left', 'ended', 'opened', 'owner',
                         'build', 'attempt_build', 'executed', 'paused')
local status, stalled = known[1], known[12] and known[12] ~= ''

-- What is kept of an attempt when the next one begins; of the newest, the fields of the run say it.
-- (How it was left, when it began, when it was left, its process, how many steps it has executed and replayed, its build.
-- A process that died has left no word. One that ended in order has given the run back, and said when.)
local function remember(attempt)
  if attempt == '0' then return end  -- a restart that nobody has begun
  -- (An older version does not delete what an earlier attempt has said.)
  local released = status == 'running' and known[14] and tonumber(known[14]) >= tonumber(known[16] or 0)
  local left = (status == 'suspended' or released) and known[14] or status == 'failed' and known[15]
  local how = released and 'released' or status == 'suspended' and known[21] and 'pause' or heading_of(status, known[13])
  local executed, replayed = string.match(known[20] or '', '^' .. attempt .. ' (%d+) (%d+)$')
  local facts = {how, known[16] or '', left or '', known[17] or '', executed or '', replayed or '', known[19] or ''}
  redis.call('HSET', run, 'attempt.' .. attempt, table.concat(facts, ' '))
  redis.call('HDEL', run, 'attempt.' .. attempt - 99)
end

local function begin(recoveries, reopened)
  remember(known[6])
  leave(id, heading_of(status, known[13]), task)
  local attempt = redis.call('HINCRBY', run, 'attempt', 1)
  -- An entry without a build is of the build that began the run. But version 0.1.0, which may run beside this one,
  -- names no build. If it has run an attempt since, the builds of such entries are not known any more.
  local last = known[19] and tonumber(string.match(known[19], '^%d+')) or 1
  if known[18] and last ~= attempt - 1 then redis.call('HSET', run, 'build', '') end
  -- A restart that has no entries yet: this code begins the run.
  if attempt == 1 and not known[18] then redis.call('HSET', run, 'build', build) end
  redis.call('HSET', run, 'status', 'running', 'fence', fence, 'owner', ARGV[13], 'opened', now, 'recoveries', recoveries,
             'attempt_build', attempt .. ':' .. build)
  redis.call('HDEL', run, 'due', 'resent', 'waits', 'left', 'paused')
  redis.call('ZREM', due, id)
  redis.call('ZADD', leases, now + lease, id)
  return {'open', attempt, now, recoveries, reopened}
end

--include take_back
--include reserved

-- Retry of a failed run.
local function renew_budgets()
  take_back(ARGV[18])
  redis.call('HDEL', run, 'outcome', 'ended', 'delivered', 'failures', 'failing_since', 'resume', 'cancel', 'stalled', 'reserved')
  redis.call('PERSIST', run)
end

local function known_run()
  -- This very call has begun the attempt. It was sent again, because its reply was lost, or it is a late copy.
  local own = string.match(known[7] or '', '^[^:]*') == fence
  if own and status ~= 'running' then return {'outdated'} end
  local theirs, ours = tonumber(known[2]) or 0, tonumber(layout)
  -- This version cannot read the entries of a newer layout. The attempt finds that, and waits for a worker that can.
  -- (What this script reads means the same in every layout.)
  if theirs < 1 or (theirs > ours and status == 'failed' and fresh) then return {'unreadable', known[2]} end

  local expiry = redis.call('ZSCORE', leases, id)
  local held = status == 'running' and expiry and tonumber(expiry) > now

  if nesting > tonumber(known[5]) then
    -- Task.replace() gives the id to another task. That is a run of its own. It begins when the replaced one has ended.
    if held then return {'replaced', 250} end
    -- What people have done with the id stays.
    local kept = redis.call('HMGET', run, 'actions', 'restarted_from', 'ancestors', 'cancel')
    redis.call('DEL', run)
    leave(id, heading_of(status, known[13]), known[3])
    local begun = create()
    for i, name in ipairs({'actions', 'restarted_from', 'ancestors'}) do
      if kept[i] then redis.call('HSET', run, name, kept[i]) end
    end
    -- Somebody has cancelled the id, and the replaced task has not heard of it any more.
    if kept[4] == 'requested' then redis.call('HSET', run, 'cancel', 'requested') end
    return begun
  end
  if nesting < tonumber(known[5]) or known[3] ~= task then return {'id_conflict', known[3]} end
  if known[4] ~= fingerprint then
    -- self.retry(args=...) changes the arguments of a run. An older copy of its message begins nothing any more.
    local newest = tonumber(known[11] or 0)
    if changed < newest and not fresh then return {'outdated'} end
    -- A run without a fingerprint waits for the message of its newest change.
    if changed < newest or (changed == newest and known[4] ~= '') then return {'id_conflict', known[3]} end
    redis.call('HSET', run, 'fingerprint', fingerprint, 'call', call, 'changed', ARGV[11])
    redis.call('HDEL', run, 'arguments:' .. newest)
  end

  if status == 'running' then
    if own then return {'open', tonumber(known[6]), now, tonumber(known[10]), 0} end
    if held then return {'busy', tonumber(expiry) - now} end
    -- The last attempt has died. It counts, unless it has recorded something new: then the run is no poison pill.
    if known[9] == known[6] then return begin(0, 0) end
    return begin(tonumber(known[10]) + 1, 0)
  end

  if status == 'suspended' then
    local wait = tonumber(known[8]) - now
    if wait > 0 then
      -- This may be the message that was expected then.
      redis.call('ZADD', due, known[8], id)
      return {'early', wait, known[13] ~= 'pause' and stalled and 'stall' or known[13] or 'sleep'}
    end
    -- A stalled attempt says nothing about those that died before it.
    if stalled then return begin(tonumber(known[10]), 0) end
    return begin(0, 0)
  end

  if status == 'failed' and fresh then
    -- The caller decides from the journal whether its message reopens this failure, and which entries that deletes.
    -- (It may have been restarted since.)
    local actions = redis.call('HGET', run, 'actions') or ''
    if ARGV[17] ~= known[6] or ARGV[19] ~= tostring(#actions) then return {'failed', now} end
    if ARGV[20] ~= '' and ARGV[20] ~= reserved_by() then return {'failed', now} end
    redis.call('HSET', run, 'reopened', (redis.call('HGET', run, 'reopened') or '\n') .. ARGV[14] .. '\n')
    renew_budgets()
    return begin(0, 1)
  end

  -- Its process seemed to be lost, and has ended the run all the same.
  leave(id, 'running', task)
  if redis.call('HEXISTS', run, 'delivered') == 0 then
    -- The worker that delivers the outcome has the lease, so its callbacks and the like are sent once.
    if expiry and tonumber(expiry) > now then return {'busy', tonumber(expiry) - now} end
    redis.call('ZADD', leases, now + lease, id)
  end
  return {'finished'}
end

local reply = known_run()
if ARGV[16] == '1' then reply[#reply + 1] = redis.call('HGETALL', run) end
return reply

-- The newest runs of a shard that are asked for. What a run says beside its state and its task is looked for here only as
-- far as that is certain: the caller reads all runs that are found, and decides.
-- KEYS index, leases
-- ARGV prefix of the keys of runs, and what is asked, as JSON:
--   most; headings; tasks (none: all tasks); newest, oldest: times of creation (ms), as texts; before: of those as new as
--   the newest only ids before it ('': all); needle: a part of the id, the task or the arguments ('': any);
--   pairs: texts in the attributes; looks: so many journals are read, and then the reply says where the next call goes
--   on; from: {name of a sorted set, time, id}, if this is the next call
-- Replies {{from} or {}, id, created, name of its sorted set, ...}
--include index
local prefix, asked = ARGV[1], cjson.decode(ARGV[2])
local most, needle, oldest, looks, from = asked.most, asked.needle, asked.oldest, asked.looks, asked.from
local lower, find, match = string.lower, string.find, string.match
local headings, tasks, found = {}, {}, {}
for _, heading in ipairs(asked.headings) do headings[heading] = true end
for _, task in ipairs(asked.tasks) do tasks[task] = true end

local function is_asked(heading, task)
  return headings[heading] and (tasks[task] or not asked.tasks[1])
end

-- Redis sorts texts by their bytes. The operator of Lua does it as people do who speak the language of the server.
local function is_smaller(a, b)
  for i = 1, math.min(#a, #b) do
    local x, y = string.byte(a, i), string.byte(b, i)
    if x ~= y then return x < y end
  end
  return #a < #b
end

-- The text of the arguments has the needle in it, or Python shows them in another way: they are of another serializer, or
-- of a type that JSON does not have. (What stands behind the last "options" belongs to none of the arguments.)
local function mentions(call)
  if type(call) ~= 'string' then return false end
  looks = looks - #call / 1024
  if find(call, '{"args": ', 1, true) ~= 1 or find(call, '__type__"', 1, true) then return true end
  local first = find(lower(call), needle, 1, true)
  return first and first < (match(call, '^.*(), "options": {') or #call)
end

local function is_wanted(id, is_named)
  is_named = is_named or find(lower(id), needle, 1, true)
  if is_named and not asked.pairs[1] then return true end
  looks = looks - 1
  local key = prefix .. id
  if asked.pairs[1] then
    local attributes = redis.pcall('HGET', key, 'attributes')
    for _, pair in ipairs(asked.pairs) do
      if type(attributes) ~= 'string' or not find(attributes, pair, 1, true) then return false end
    end
  end
  return is_named or mentions(redis.pcall('HGET', key, 'call'))
end

-- What is older than enough others is not asked for any more.
local function narrow()
  local times, kept = {}, {}
  for i, run in ipairs(found) do times[i] = tonumber(run[2]) end
  local all = {unpack(times)}
  table.sort(all)
  oldest = all[#all - most + 1]
  for i, run in ipairs(found) do
    if times[i] >= oldest then kept[#kept + 1] = run end
  end
  found = kept
end

-- Redis writes a time in a microsecond. Where few runs are found among many, only theirs are asked for.
local with_times = needle == '' and not asked.pairs[1]
local step = with_times and 2 or 1

local function some_of(key, newest, number)
  if with_times then return redis.call('ZREVRANGEBYSCORE', key, newest, oldest, 'WITHSCORES', 'LIMIT', 0, number) end
  return redis.call('ZREVRANGEBYSCORE', key, newest, oldest, 'LIMIT', 0, number)
end

local function created_of(key, some, i)
  return with_times and some[i + 1] or redis.call('ZSCORE', key, some[i])
end

-- Returns where to go on, if enough journals are read for now.
local function read(name, heading, task, newest, before)
  local key, is_named, number = index .. ':' .. name, find(lower(task), needle, 1, true), 0
  while number < most do
    local as_new = before ~= '' and redis.call('ZCOUNT', key, newest, newest) or 0
    local some = some_of(key, newest, most + as_new)
    for i = 1, #some, step do
      local id = some[i]
      if i > step * as_new or is_smaller(id, before) then
        local is_leased = heading == 'running' and redis.call('ZSCORE', KEYS[2], id)
        if not is_leased and is_wanted(id, is_named) then
          number = number + 1
          found[#found + 1] = {id, created_of(key, some, i), name}
        end
        if looks <= 0 then return {name, created_of(key, some, i), id} end
      end
    end
    if #some < step * (most + as_new) then return nil end
    local last = #some - step + 1
    before, newest = some[last], created_of(key, some, last)
  end
end

local function is_in_span(created, id)
  local newest = tonumber(asked.newest)
  return created >= tonumber(oldest) and (created < newest or created == newest and (asked.before == '' or is_smaller(id, asked.before)))
end

-- Of these there are as many as workers can execute.
local function read_running()
  for _, id in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do
    local run = redis.pcall('HMGET', prefix .. id, 'status', 'task', 'created')
    -- A damaged journal may not say when it was created: then it counts as old.
    local task, created = run[2], tonumber(run[3]) or 0
    if run[1] == 'running' and task and is_asked(run[1], task) and is_in_span(created, id)
       and is_wanted(id, find(lower(task), needle, 1, true)) then
      found[#found + 1] = {id, created, 'running:' .. task}
    end
  end
end

local function read_all()
  for _, name in ipairs(redis.call('ZRANGE', index, from and '[' .. from[1] or '-', '+', 'BYLEX')) do
    local heading, task = match(name, '^(%a+):(.*)$')
    if is_asked(heading, task) then
      local newest, before = asked.newest, asked.before
      if from and name == from[1] then newest, before = from[2], from[3] end
      local stopped = read(name, heading, task, newest, before)
      if stopped then return stopped end
      if #found >= 2 * most then narrow() end
    end
  end
  return {}
end

if headings['running'] and not from then read_running() end
local page = {read_all()}
for _, run in ipairs(found) do
  for _, fact in ipairs(run) do page[#page + 1] = fact end
end
return page

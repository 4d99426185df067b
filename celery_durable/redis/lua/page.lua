-- The newest runs of a shard under these headings, of these tasks.
-- KEYS index, leases
-- ARGV most, newest and oldest time of creation (ms), id ('' or: of those as new as the newest, only ids before it),
--   number of headings, prefix of the keys of runs, heading, ..., task, ... (none: all tasks)
-- Replies {id, created, heading, task, ...}, the newest first
--include index
local most, newest, oldest, before = tonumber(ARGV[1]), ARGV[2], ARGV[3], ARGV[4]
local last_heading = 6 + tonumber(ARGV[5])
local tasks = #ARGV > last_heading and {unpack(ARGV, last_heading + 1)} or redis.call('ZRANGE', index, 0, -1)
local found = {}

local function newest_first(a, b)
  local first, second = tonumber(a[2]), tonumber(b[2])
  return first > second or first == second and a[1] > b[1]
end

-- What is older than enough others need not be read.
local function narrow()
  table.sort(found, newest_first)
  for i = #found, most + 1, -1 do found[i] = nil end
  if #found == most then oldest = found[most][2] end
end

local function collect(heading, task, key, first, limit)
  local some = redis.call('ZREVRANGEBYSCORE', key, first, oldest, 'WITHSCORES', 'LIMIT', 0, limit)
  for i = 1, #some, 2 do
    local id, created = some[i], some[i + 1]
    if before == '' or tonumber(created) < tonumber(newest) or id < before then
      found[#found + 1] = {id, created, heading, task}
    end
  end
end

local wanted = {}
for _, task in ipairs(tasks) do wanted[task] = true end

local function is_wanted(status, task, created, id)
  if status ~= 'running' or not (wanted[task] or #ARGV == last_heading) then return false end
  local at, first, last = tonumber(created), tonumber(newest), tonumber(oldest)
  return at >= last and (at < first or at == first and (before == '' or id < before))
end

-- Of these there are as many as workers can execute.
local function collect_running()
  for _, id in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do
    local run = redis.pcall('HMGET', ARGV[6] .. id, 'status', 'task', 'created')
    if is_wanted(run[1], run[2], run[3], id) then found[#found + 1] = {id, run[3], run[1], run[2]} end
  end
end

for i = 7, last_heading do
  if ARGV[i] == 'running' then collect_running() end
  for _, task in ipairs(tasks) do
    local key = index .. ':' .. ARGV[i] .. ':' .. task
    local as_new = before ~= '' and redis.call('ZCOUNT', key, newest, newest) or 0
    collect(ARGV[i], task, key, newest, most + as_new)
    if #found >= 2 * most then narrow() end
  end
end
narrow()
local page = {}
for _, run in ipairs(found) do
  for _, fact in ipairs(run) do page[#page + 1] = fact end
end
return page

-- Let runs leave the index whose journals are gone, and put those under their headings that a version without the index has
-- changed. Each call looks at a part: at the oldest runs, which expire first, and at others from a place on, because a run
-- that has slept for long is old, and is kept, and those behind it expire before it.
-- KEYS index, leases, due
-- ARGV prefix of the keys of runs, most runs that it looks at, place in the index, place among due, heading of ended runs, ...
-- Replies {how many runs have moved, next place in the index, next place among due}
--include index
local prefix, most = ARGV[1], tonumber(ARGV[2])
--include let_go
local all, total, names, ended, moved = most, 0, {}, {}, 0
for i = 5, #ARGV do ended[ARGV[i]] = true end

-- Put the run under the heading that its journal says, if it is not there. *under*: where it was met in the index.
local function put(id, under)
  local run = redis.pcall('HMGET', prefix .. id, 'status', 'waits', 'task', 'created')
  if run.err or run[1] and not run[3] then return end  -- damaged: it stays where it is
  local name = run[1] and heading_of(run[1], run[2]) .. ':' .. run[3]
  if name == under or not under and (not name or redis.call('ZSCORE', index .. ':' .. name, id)) then return end
  if name then enter(id, heading_of(run[1], run[2]), run[3], run[4]) end
  if under then redis.call('ZREM', index .. ':' .. under, id) end
  moved = moved + 1
end

-- Most runs have ended, and stay under their heading: it is their status.
local function look_at(id, name)
  local heading = string.match(name, '^%a+')
  if not (ended[heading] and redis.pcall('HGET', prefix .. id, 'status') == heading) then put(id, name) end
end

local function look_in_index(skip, some)
  for _, name in ipairs(names) do
    local key = index .. ':' .. name
    local number = redis.call('ZCARD', key)
    local last = math.min(number, skip + some) - 1
    if last >= skip then
      for _, id in ipairs(redis.call('ZRANGE', key, skip, last)) do look_at(id, name) end
      some = some - (last - skip + 1)
    end
    skip = math.max(0, skip - number)
  end
end

-- A version without the index lets runs wait that are not in it.
local function look_among_due(skip, some)
  if some <= 0 then return end
  for _, id in ipairs(redis.call('ZRANGE', KEYS[3], skip, skip + some - 1)) do put(id) end
end

-- Look at some of so many runs from a place on. After the last one comes the first one. Returns the next place.
local function look_around(look, number, place, some)
  place = tonumber(place) % math.max(number, 1)
  local first = math.min(some, number - place)
  look(place, first)
  look(0, math.min(some - first, place))
  return place + some
end

for _, name in ipairs(redis.call('ZRANGE', index, 0, -1)) do
  local number = let_go(name)
  if number > 0 then names[#names + 1] = name end
  total = total + number
end
local let = all - most
local place = look_around(look_in_index, total, ARGV[3], most) - moved  -- those behind have come nearer
moved = moved + let
local due = look_around(look_among_due, redis.call('ZCARD', KEYS[3]), ARGV[4], all)
return {moved, place, due}

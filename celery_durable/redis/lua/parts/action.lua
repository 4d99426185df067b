-- Keep who has done what with a run. (This needs in_time.)
local function keep_action(what, by, request, run)
  local action = {what = what, by = by, at = now, request = request, run = run}
  local actions = redis.call('HGET', KEYS[1], 'actions') or ''
  redis.call('HSET', KEYS[1], 'actions', actions .. cjson.encode(action) .. '\n')
end

-- Whether this very request has done that before: its reply was lost, or its message is delivered again.
local function is_done(request)
  local actions = redis.call('HGET', KEYS[1], 'actions') or ''
  -- (A quote inside of a text is escaped.)
  return string.find(actions, '"request":' .. cjson.encode(request), 1, true)
end

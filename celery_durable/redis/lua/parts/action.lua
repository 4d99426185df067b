-- Keep who has done what with a run. (This needs in_time.)
local function keep_action(what, by, run)
  local action = {what = what, by = by, at = now, run = run ~= '' and run or nil}
  local actions = redis.call('HGET', KEYS[1], 'actions') or ''
  redis.call('HSET', KEYS[1], 'actions', actions .. cjson.encode(action) .. '\n')
end

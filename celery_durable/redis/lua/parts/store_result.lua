-- Store a result at *key* as Celery's backend would, for *seconds* ('0': for ever). Returns whether Redis takes it.
-- A script does this first: Redis takes back nothing that a script has written.
local function store_result(key, text, seconds)
  local set = seconds == '0' and redis.pcall('SET', key, text) or redis.pcall('SETEX', key, seconds, text)
  return not set.err and type(redis.pcall('PUBLISH', key, text)) ~= 'table'
end

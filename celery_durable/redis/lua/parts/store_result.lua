-- Store a result at *key* as Celery's backend would, for *seconds* ('0': for ever). Returns an error that Redis replies.
-- The script replies that error: the caller knows which errors pass. A script stores the result before all else, because
-- Redis takes back nothing that a script has written.
-- As with Celery, a result that begins with *lasting* (a success) is not replaced; '': any is.
local function store_result(key, text, seconds, lasting)
  local held = lasting ~= '' and redis.pcall('GET', key)
  -- A key of another type is no success, and is replaced. Any other error says that nobody knows what the key holds.
  if type(held) == 'table' and not string.find(held.err, 'WRONGTYPE', 1, true) then return held end
  if type(held) == 'string' and string.sub(held, 1, #lasting) == lasting then return nil end
  local set = seconds == '0' and redis.pcall('SET', key, text) or redis.pcall('SETEX', key, seconds, text)
  if set.err then return set end
  local told = redis.pcall('PUBLISH', key, text)
  if type(told) == 'table' then return told end
end

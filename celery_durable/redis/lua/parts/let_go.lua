-- Let the oldest runs of one sorted set leave the index while their journals are gone. Runs of one task under one heading
-- are kept for the same time, so the oldest expire first. Returns how many runs stay in the set.
-- (This needs index, prefix, and most: how many may leave.)
local function let_go(name)
  local key = index .. ':' .. name
  while most > 0 do
    local oldest = redis.call('ZRANGE', key, 0, 0)[1]
    if not oldest or redis.call('EXISTS', prefix .. oldest) == 1 then break end
    redis.call('ZREM', key, oldest)
    most = most - 1
  end
  local number = redis.call('ZCARD', key)
  if number == 0 then redis.call('ZREM', index, name) end
  return number
end

-- The token of the Retry that is about to reopen a failed run; nil: there is none. (This needs in_time.)
local function reserved_by()
  local till, holder = string.match(redis.call('HGET', KEYS[1], 'reserved') or '', '^(%d+) (.*)$')
  return till and tonumber(till) > now and holder or nil
end

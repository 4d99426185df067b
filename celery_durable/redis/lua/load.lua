-- Some fields of runs of a shard, and when their leases lapse.
-- KEYS leases   ARGV prefix of the keys of runs, how many fields, field, ..., id, ...
-- Replies {{value, ...} or {} if the key of the run holds something else, lease (ms), ...}
local number, found = tonumber(ARGV[2]), {}
local fields = {unpack(ARGV, 3, number + 2)}
for i = number + 3, #ARGV do
  local held = redis.pcall('HMGET', ARGV[1] .. ARGV[i], unpack(fields))
  if held.err then
    -- The other runs must still be read.
    if not string.find(held.err, 'WRONGTYPE', 1, true) then return held end
    held = {}
  end
  found[#found + 1] = held
  found[#found + 1] = redis.call('ZSCORE', KEYS[1], ARGV[i])
end
return found

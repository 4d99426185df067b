-- Write fields of the journal: *pairs*, and the names and values from ARGV[first] on. Nothing replaces a settled entry.
-- (A quote inside a step's name is escaped, so the pattern finds the entry's own state.)
local settled = {done = true, failed = true, cancelled = true}
local function write(first, pairs)
  local names = {}
  for i = first, #ARGV, 2 do names[#names + 1] = ARGV[i] end
  local held = names[1] and redis.call('HMGET', KEYS[1], unpack(names))
  for i, name in ipairs(names) do
    local kept = held[i] and string.sub(name, 1, 5) == 'step:' and settled[string.match(held[i], '"state":"(%a+)"')]
    if not kept then
      pairs[#pairs + 1] = name
      pairs[#pairs + 1] = ARGV[first + 2 * i - 1]
    end
  end
  if pairs[1] then redis.call('HSET', KEYS[1], unpack(pairs)) end
end

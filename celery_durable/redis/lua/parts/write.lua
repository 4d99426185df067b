-- Write fields of the journal: *pairs*, and the names and values from ARGV[first] on. Nothing replaces a settled entry.
-- (A quote inside a step's name is escaped, so the pattern finds the entry's own state.)
local settled = {done = true, failed = true, cancelled = true}
local function write(first, pairs)
  for i = first, #ARGV, 2 do
    local name = ARGV[i]
    local held = string.sub(name, 1, 5) == 'step:' and redis.call('HGET', KEYS[1], name)
    if not (held and settled[string.match(held, '"state":"(%a+)"')]) then
      pairs[#pairs + 1] = name
      pairs[#pairs + 1] = ARGV[i + 1]
    end
  end
  if pairs[1] then redis.call('HSET', KEYS[1], unpack(pairs)) end
end

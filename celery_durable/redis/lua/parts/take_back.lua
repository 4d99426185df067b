-- Delete the entries that a Retry takes back: journal/reopening.py says which, from the journal as it was a moment ago.
-- An action that has ended since, late, has run: its entry stays.
local function take_back(fields)
  for field in string.gmatch(fields, '[^\n]+') do
    local entry = redis.call('HGET', KEYS[1], field)
    if not (entry and string.match(entry, '"state":"(%a+)"') == 'done') then redis.call('HDEL', KEYS[1], field) end
  end
end

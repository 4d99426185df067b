-- An attempt goes on over another connection. What its earlier connections still deliver does not count any more.
-- KEYS run   ARGV token of the attempt, number of the connection   Replies 1, 0 to a stale attempt or connection
local token, number = string.match(redis.call('HGET', KEYS[1], 'fence') or '', '^([^:]*):?(%d*)$')
if token ~= ARGV[1] or tonumber(number ~= '' and number or 1) >= tonumber(ARGV[2]) then return 0 end
redis.call('HSET', KEYS[1], 'fence', token .. ':' .. ARGV[2])
return 1

-- No fence guards this act. A packet of it may come long after it was given up, or sent again and carried out: once
-- nobody can wait for its reply any more, which the last argument says, nothing is done.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if now > tonumber(table.remove(ARGV)) then return redis.error_reply('LATE nobody waits for this reply any more') end

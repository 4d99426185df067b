-- No fence guards this act, and a packet of it may come late: when its caller has given up, or when it was sent again
-- and carried out. The last argument says until when somebody may wait for the reply. After that nothing is done.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if now > tonumber(table.remove(ARGV)) then return redis.error_reply('LATE nobody waits for this reply any more') end

-- The end of each room: the position of the last thing published in it. A room nobody knew yet starts now.
--
-- KEYS the rooms' records   ARGV[1] seconds to keep a record

local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000000 + time[2])
local ends = {}
for i, room in ipairs(KEYS) do
  redis.call('HSETNX', room, 'position', now)
  redis.call('EXPIRE', room, ARGV[1])
  ends[i] = redis.call('HGET', room, 'position')
end
return ends

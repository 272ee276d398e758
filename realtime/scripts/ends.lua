-- The end of each room: the position of the last thing published in it. A room nobody knew yet starts now.
--
-- KEYS the rooms' bases   ARGV[1] seconds to keep a room

local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000000 + time[2])
local ends = {}
for i, base in ipairs(KEYS) do
  redis.call('HSETNX', base .. ':room', 'position', now)
  redis.call('EXPIRE', base .. ':room', ARGV[1])
  ends[i] = redis.call('HGET', base .. ':room', 'position')
end
return ends

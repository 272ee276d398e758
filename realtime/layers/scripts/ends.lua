-- The end of each room: the position of its last publication. A new room starts now.
--
-- KEYS the rooms' bases   ARGV seconds to keep a room, how to publish, then for each room what the caller has received (cut.lua)

local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000000 + time[2])
local ends = {}
for i, base in ipairs(KEYS) do
  if redis.call('HSETNX', base .. ':room', 'position', now) == 1 then
    -- A log that outlived its room does not precede the next publication (append.lua).
    local newest = redis.call('XREVRANGE', base .. ':log', '+', '-', 'COUNT', 1)[1]
    if newest then
      local position = math.max(tonumber(now), tonumber((string.match(newest[1], '%d+'))) + 1)
      redis.call('HSET', base .. ':room', 'position', string.format('%.0f', position))
      redis.call('DEL', base .. ':log')
    end
  end
  redis.call('EXPIRE', base .. ':room', ARGV[1])
  ends[i] = cut_if_lost(base, ARGV[i + 2], redis.call('HGET', base .. ':room', 'position'), ARGV[2])
end
return ends

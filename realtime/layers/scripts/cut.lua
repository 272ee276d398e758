-- Cut the history of a room that Redis has forgotten in part: it was set back, for example by a replica that took over without the
-- newest writes. The instance that has received more is the only one that can tell. After the cut no position from before is known,
-- so every reader of what follows one learns of the loss: clients of every instance, also those that have gone on with what was
-- published since, and those that come back later.
--
-- This part precedes a script that reads (ends.lua, after.lua).
--
-- base   the room's   received, last  the last position that the instance has received ('0' = none), and that of the room
-- command  how to publish (SPUBLISH in a Cluster)
--
-- Returns the last position of the room now. Positions have 16 digits, so they sort as text.

local function cut_if_lost(base, received, last, command)
  if received == last or received == '0' then return last end
  local log = base .. ':log'
  if received < last then
    -- A log has no holes: what is above the position before its first entry (append.lua) is in it.
    local first = redis.call('XRANGE', log, '-', '+', 'COUNT', 1)[1]
    if not first or first[2][2]:sub(2, 17) >= received then return last end
    if redis.call('XRANGE', log, received, received)[1] then return last end
  end
  local time = redis.call('TIME')
  local position = math.max(time[1] * 1000000 + time[2], tonumber(last) + 1, tonumber(received) + 1)
  position = string.format('%.0f', position)
  redis.call('HSET', base .. ':room', 'position', position, 'bytes', 0)  -- first: a Redis that is full refuses it
  redis.call('DEL', log)
  redis.call(command, base .. ':live', 'C' .. position)
  return position
end


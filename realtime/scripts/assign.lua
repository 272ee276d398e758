-- Give one bus entry its position in each of its rooms, once.
--
-- KEYS[1]   marker of the idempotency id ('' = none)
-- KEYS[2..] the rooms' records: hash {position, <source> = last entry of that source and its position}
-- ARGV      source, entry (sorts like the stream does), seconds to keep the marker, seconds to keep a record
--
-- Returns nil when an entry with this id was delivered before, else one position a room ('' = this room has
-- it already). An entry asked for again, because its delivery may have failed half-way, gets the same position.
-- Positions are microseconds of Redis' clock and never go back: a room's next is max(last + 1, now).

local source, entry, keep_marker, keep_record = ARGV[1], ARGV[2], ARGV[3], ARGV[4]

if KEYS[1] ~= '' then
  local mark = source .. ' ' .. entry
  if not redis.call('SET', KEYS[1], mark, 'NX', 'EX', keep_marker) and redis.call('GET', KEYS[1]) ~= mark then
    return false
  end
end

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local positions = {}
for i = 2, #KEYS do
  local record = redis.call('HMGET', KEYS[i], 'position', source)
  local last, given = (record[2] or ''):match('^(%S+) (%d+)$')
  if last and last == entry then
    positions[#positions + 1] = given
  elseif last and last > entry then
    positions[#positions + 1] = ''
  else
    local position = string.format('%.0f', math.max((tonumber(record[1]) or 0) + 1, now))
    redis.call('HSET', KEYS[i], 'position', position, source, entry .. ' ' .. position)
    redis.call('EXPIRE', KEYS[i], keep_record)
    positions[#positions + 1] = position
  end
end
return positions

-- What came after a position, if all of it is still known.
--
-- KEYS[1] the room's base   ARGV position, most entries
--
-- Returns {end}: not all of it is known. Else {end, missed, entries}: the number after the position, and the
-- first of them. A position counts as known when it is the room's end, when its entry is in the log, or when it
-- stands right before the log's first entry.

local room, log, since = KEYS[1] .. ':room', KEYS[1] .. ':log', ARGV[1]
local known = redis.call('HMGET', room, 'position', 'count')
local last, count = known[1], tonumber(known[2] or 0)
if not last then return {''} end
if last == since then return {last, 0, {}} end

local function field(entry, name)
  for i = 1, #entry[2], 2 do
    if entry[2][i] == name then return entry[2][i + 1] end
  end
end

local missed
local found = redis.call('XRANGE', log, since, since)
if found[1] then
  missed = count - tonumber(field(found[1], 'n'))
else
  local first = redis.call('XRANGE', log, '-', '+', 'COUNT', 1)[1]
  if not first or field(first, 'p') ~= since then return {last} end
  missed = count - tonumber(field(first, 'n')) + 1
end
-- COUNT 0 would be answered with nil.
if ARGV[2] == '0' then return {last, missed, {}} end
return {last, missed, redis.call('XRANGE', log, '(' .. since, '+', 'COUNT', ARGV[2])}

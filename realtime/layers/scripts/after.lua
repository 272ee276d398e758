-- The publications after a position, if all of them are still in the log.
--
-- KEYS[1] the room's base   ARGV position, most entries, bytes after which no more are added, how to publish,
--                           a connection ('' = none), the position at which it was opened, then positions that the caller has
--                           received (cut.lua)
--
-- Returns {end}: not all of it is known. Else {end, missed, publications}: the number after the position, without those that leave
-- out the connection (none from before it was opened does), and the first of them, with those. A position counts as known when it is
-- the room's end, when its entry is in the log, or when it stands right before the log's first entry.

local room, log, since = KEYS[1] .. ':room', KEYS[1] .. ':log', ARGV[1]
local known = redis.call('HMGET', room, 'position', 'count')
local last, count = known[1], tonumber(known[2] or 0)
if not last then return {''} end
for i = 7, #ARGV do last = cut_if_lost(KEYS[1], ARGV[i], last, ARGV[4]) end
if last == since then return {last, 0, {}} end

-- A publication's running number, and the position before it (append.lua).
local function number(entry) return tonumber(entry[2][2]:sub(34, 45)) end
local function before(entry) return entry[2][2]:sub(2, 17) end

-- Whether it leaves the connection out (a traceparent may follow the connection behind a NUL).
local function is_left_out(entry)
  local publication = entry[2][2]
  local excluded = publication:sub(52, 51 + tonumber(publication:sub(46, 51)))
  return excluded:match('^[^%z]*') == ARGV[5]
end

local missed
local found = redis.call('XRANGE', log, since, since)
if found[1] then
  missed = count - number(found[1])
else
  local first = redis.call('XRANGE', log, '-', '+', 'COUNT', 1)[1]
  if not first or before(first) ~= since then return {last} end
  missed = count - number(first) + 1
end
local from = math.max(tonumber(since), tonumber(ARGV[6]))
if ARGV[5] ~= '' and tonumber(last) > from then
  for _, entry in ipairs(redis.call('XRANGE', log, string.format('(%.0f', from), '+')) do
    if is_left_out(entry) then missed = missed - 1 end
  end
end
-- COUNT 0 would be answered with nil.
if ARGV[2] == '0' then return {last, missed, {}} end
local publications, bytes = {}, 0
for i, entry in ipairs(redis.call('XRANGE', log, '(' .. since, '+', 'COUNT', ARGV[2])) do
  publications[i] = entry[2][2]
  bytes = bytes + #entry[2][2]
  if bytes >= tonumber(ARGV[3]) then break end
end
return {last, missed, publications}

-- Append entries to the logs of their rooms and publish them, each once, in order.
--
-- KEYS   one base `<prefix>:{<group>}` a room of an entry, in the order of the entries; of it are made
--        :room  hash  position, count, bytes, and per source the last entry taken from it
--        :log   stream: id = position, p = the position before, n = running number, x = left out, f = the frame
--        :live  the Pub/Sub channel
--        :id:…  markers of idempotency ids
-- ARGV   size, ttl ms, bytes, seconds to keep :room, seconds to keep a marker,
--        lease key ('' = none), lease holder, publish command ('' = publish nothing),
--        cursors' key ('' = none), stream, its new cursor,
--        then for each entry: rooms, source ('' = none), entry, id ('' = none), excluded connection,
--        then for each of its rooms: the frame before and after its offset
--
-- Returns for each entry its position in each of its rooms, '' where it was left out. An entry whose source is not above the room's last
-- one of that source, or whose id was delivered before, is left out: whoever submits it again does no harm.
-- Positions are microseconds of Redis' clock and never go back: max(last + 1, now).

local size, ttl, bytes = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local keep_room, keep_marker, publish = ARGV[4], ARGV[5], ARGV[8]
if ARGV[6] ~= '' and redis.call('GET', ARGV[6]) ~= ARGV[7] then
  return {}
end

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local oldest = string.format('%.0f', math.max(now - ttl * 1000, 0))

-- A room that was forgotten, or that nobody knew. Its log, if there is one, is connected to nothing that comes now;
-- its positions are still not used again, even if the clock was set back.
local function beginning(log)
  local newest = redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)[1]
  if not newest then return string.format('%.0f', now - 1) end
  redis.call('DEL', log)
  return string.format('%.0f', math.max(now - 1, tonumber((string.match(newest[1], '%d+'))) + 1))
end

-- The counter also counts what MAXLEN and age have trimmed: look closely only when it says too much, and then make
-- some room, or a full log would be read through at every entry.
local function shrink(log)
  local entries = redis.call('XRANGE', log, '-', '+')
  local total = 0
  for i = #entries, 1, -1 do
    local fields = entries[i][2]
    total = total + #fields[#fields]
    if total > bytes * 0.9 and i < #entries then
      redis.call('XTRIM', log, 'MINID', entries[i + 1][1])
      total = total - #fields[#fields]
      break
    end
  end
  return total
end

-- A room as it is now; read once and written once, however many entries of it there are.
local rooms, touched = {}, {}
local function room_of(base)
  local room = rooms[base]
  if not room then
    local key, log = base .. ':room', base .. ':log'
    local known = redis.call('HMGET', key, 'position', 'count', 'bytes')
    room = {key = key, log = log, live = base .. ':live', ids = base .. ':id:', sources = {},
      position = known[1] or beginning(log), count = tonumber(known[2] or 0), bytes = tonumber(known[3] or 0)}
    rooms[base] = room
  end
  return room
end

local function touch(room)
  if not room.touched then
    room.touched = true
    touched[#touched + 1] = room
  end
end

local function append(room, source, entry, id, excluded, head, tail)
  if source ~= '' then
    local last = room.sources[source] or redis.call('HGET', room.key, source)
    if last and last >= entry then return '' end
    room.sources[source] = entry
    touch(room)
  end
  if id ~= '' and not redis.call('SET', room.ids .. id, '1', 'NX', 'EX', keep_marker) then
    return ''
  end
  touch(room)
  local before = room.position
  room.position = string.format('%.0f', math.max(tonumber(before) + 1, now))
  room.count = room.count + 1
  local frame = head .. room.position .. tail
  redis.call('XADD', room.log, 'MAXLEN', size, room.position .. '-0',
    'p', before, 'n', room.count, 'x', excluded, 'f', frame)
  room.bytes = room.bytes + #frame
  room.appended = true
  if publish ~= '' then
    redis.call(publish, room.live,
      string.format('F%s%s%06d%s', before, room.position, #excluded, excluded) .. frame)
  end
  return room.position
end

local answers = {}
local argument, key = 12, 1
while argument <= #ARGV do
  local number, source, entry, id, excluded = unpack(ARGV, argument, argument + 4)
  argument = argument + 5
  local positions = {}
  for _ = 1, tonumber(number) do
    positions[#positions + 1] =
      append(room_of(KEYS[key]), source, entry, id, excluded, ARGV[argument], ARGV[argument + 1])
    argument = argument + 2
    key = key + 1
  end
  answers[#answers + 1] = positions
end

for _, room in ipairs(touched) do
  if room.appended then
    redis.call('XTRIM', room.log, 'MINID', oldest)
    redis.call('PEXPIRE', room.log, ttl)
    if room.bytes > bytes then room.bytes = shrink(room.log) end
  end
  redis.call('HSET', room.key, 'position', room.position, 'count', room.count, 'bytes', room.bytes)
  for source, entry in pairs(room.sources) do
    redis.call('HSET', room.key, source, entry)
  end
  redis.call('EXPIRE', room.key, keep_room)
end
if ARGV[9] ~= '' then redis.call('HSET', ARGV[9], ARGV[10], ARGV[11]) end
return answers

-- Append entries to the logs of their rooms and publish them, each once, in order.
--
-- KEYS   one base `<prefix>:{<group>}` a room of an entry, in the order of the entries; of it are made
--        :room  hash  position, count, bytes, and per source the last entry taken from it
--        :log   stream: id = position, p = the position before, n = running number, x = left out, f = the frame
--        :live  the Pub/Sub channel
--        :id:…  markers of idempotency ids
-- ARGV   size, ttl ms, bytes, seconds to keep :room, seconds to keep a marker,
--        lease key ('' = none), lease holder, publish command ('' = publish nothing),
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
local function shrink(room, log)
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
  redis.call('HSET', room, 'bytes', total)
end

local function append(base, source, entry, id, excluded, head, tail)
  local room, log = base .. ':room', base .. ':log'
  local known = redis.call('HMGET', room, 'position', 'count', source)
  if source ~= '' and known[3] and known[3] >= entry then return '' end
  if id ~= '' and not redis.call('SET', base .. ':id:' .. id, '1', 'NX', 'EX', keep_marker) then
    if source ~= '' then redis.call('HSET', room, source, entry) end
    return ''
  end
  local before = known[1] or beginning(log)
  local position = string.format('%.0f', math.max(tonumber(before) + 1, now))
  local count = tonumber(known[2] or 0) + 1
  local frame = head .. position .. tail
  redis.call('XADD', log, 'MAXLEN', size, position .. '-0', 'p', before, 'n', count, 'x', excluded, 'f', frame)
  redis.call('XTRIM', log, 'MINID', oldest)
  redis.call('PEXPIRE', log, ttl)
  redis.call('HSET', room, 'position', position, 'count', count)
  if source ~= '' then redis.call('HSET', room, source, entry) end
  redis.call('EXPIRE', room, keep_room)
  if redis.call('HINCRBY', room, 'bytes', #frame) > bytes then shrink(room, log) end
  if publish ~= '' then
    redis.call(publish, base .. ':live', string.format('F%s%s%06d%s', before, position, #excluded, excluded) .. frame)
  end
  return position
end

local appended = {}
local argument, key = 9, 1
while argument <= #ARGV do
  local rooms, source, entry, id, excluded = unpack(ARGV, argument, argument + 4)
  argument = argument + 5
  local positions = {}
  for _ = 1, tonumber(rooms) do
    positions[#positions + 1] = append(KEYS[key], source, entry, id, excluded, ARGV[argument], ARGV[argument + 1])
    argument = argument + 2
    key = key + 1
  end
  appended[#appended + 1] = positions
end
return appended

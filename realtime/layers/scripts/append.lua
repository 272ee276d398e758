-- Append entries to the logs of their rooms and publish them, each once, in order.
--
-- KEYS   one base `<prefix>:{<group>}` a room of an entry, in the order of the entries; of it are made
--        :room  hash  position, count, bytes, and per source the last entry taken from it
--        :log   stream: id = position, p = the publication
--        :live  the Pub/Sub channel: the publication
--        and behind them the cursors' key, if one is to be moved
-- ARGV   size, ttl ms, bytes, seconds to keep :room, seconds to keep a marker,
--        lease key ('' = none), lease holder, publish command ('' = publish nothing; SPUBLISH in a Cluster),
--        cursors' key ('' = none), stream, its new cursor (one behind the cursor that is there changes nothing),
--        first part of the keys that mark an id as delivered
--        ('' = each room has its own, below its base: in a Cluster a script has one slot),
--        the last entry that may have been appended before ('' = none; realtime/bridge/stream_delivery.py),
--        whether nothing is done unless all rooms are as they should be ('' = no; only for entries without a source),
--        then for each entry: rooms, source ('' = none), entry, id ('' = none), excluded connection (behind a NUL, a traceparent),
--        the frame after its offset, then for each of its rooms the frame before its offset
--
-- Returns for each entry its position in each of its rooms, '' where it was left out, '0' in a room that no connection has entered
-- while it is remembered: no client has an offset of the room, so none can ask for this publication. An entry that is not above the
-- room's last entry of its source, or whose id was delivered before, is left out: submitting it again does no harm.
-- Behind these, for each entry that cannot be appended to one of its rooms: its number, from 0, and why. It is left out there, all
-- others are appended, and the cursor is not moved. With `whole` that is an error instead. The id is marked as delivered except there:
-- submitted again, it is new for that room alone.
-- Positions are microseconds of Redis' clock and never go back: max(last + 1, now).
--
-- Redis undoes nothing when a script fails half-way (for example at a key of another type). So the part that was done is recorded
-- before the error is returned, and submitting the same entries again does the rest.
--
-- A publication is one string: 'F', the position before (16 digits), its own (16), its running number in the room (12), the
-- length of the connection id that is left out (6), that id, and the frame. (realtime/layers/history.py reads it.)

local counts = {SPUBLISH = 'SHARDNUMSUB', PUBLISH = 'NUMSUB'}
local size, ttl, bytes = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local keep_room, keep_marker, publish, ids, again, whole = ARGV[4], ARGV[5], ARGV[8], ARGV[12], ARGV[13], ARGV[14]
if ARGV[6] ~= '' and redis.call('GET', ARGV[6]) ~= ARGV[7] then
  return {}
end

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local oldest = string.format('%.0f', math.max(now - ttl * 1000, 0))

-- A room that is new, or was forgotten. Its log, if there is one, does not precede the next publication; its positions are not
-- used again all the same, even if the clock was set back.
local function beginning(log)
  local newest = redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)[1]
  if not newest then return string.format('%.0f', now - 1) end
  redis.call('DEL', log)
  return string.format('%.0f', math.max(now - 1, tonumber((string.match(newest[1], '%d+'))) + 1))
end

-- The counter includes entries that MAXLEN and age have trimmed, so the log is read only when the counter exceeds the limit, and
-- then trimmed below it, or a full log would be read for every entry.
local function shrink(log)
  local entries = redis.call('XRANGE', log, '-', '+')
  local total = 0
  for i = #entries, 1, -1 do
    local size = #entries[i][2][2]
    total = total + size
    if total > bytes * 0.9 and i < #entries then
      redis.call('XTRIM', log, 'MINID', entries[i + 1][1])
      total = total - size
      break
    end
  end
  return total
end

-- A room as it is now; read once and written once, however many entries of it there are.
local rooms, touched = {}, {}
local function room_of(base, source)
  local room = rooms[base]
  if not room then
    local key, log, live = base .. ':room', base .. ':log', base .. ':live'
    local known = source == '' and redis.call('HMGET', key, 'position', 'count', 'bytes')
      or redis.call('HMGET', key, 'position', 'count', 'bytes', source)
    if not known[1] and publish ~= '' and redis.call('PUBSUB', counts[publish], live)[2] == 0 then
      room = {is_unknown = true}
    else
      local position = known[1] or beginning(log)
      room = {key = key, log = log, live = live, position = position, last = position + 0,
        count = (known[2] or 0) + 0, bytes = (known[3] or 0) + 0, sources = {[source] = known[4]},
        touched = false, has_grown = false}  -- all fields at once: a table that grows is built anew
    end
    rooms[base] = room
  elseif not room.is_unknown and room.sources[source] == nil then
    room.sources[source] = redis.call('HGET', room.key, source)
  end
  return room
end

-- Whether the room has not had this entry yet.
local function is_new_in(room, source, entry)
  if not room.touched then
    room.touched = true
    touched[#touched + 1] = room
  end
  if source == '' then return true end
  local last = room.sources[source]
  if last and last >= entry then return false end
  -- Who entered the room later than this was written has never missed it.
  if not last and entry <= again and tonumber(string.sub(entry, 1, 20)) * 1000 < room.last then return false end
  return true
end

local function append(room, excluded, head, tail)
  room.last = math.max(room.last + 1, now)
  local front = string.format('F%s%.0f%012d%06d', room.position, room.last, room.count + 1, #excluded)
  local position = string.sub(front, 18, 33)
  local publication = front .. excluded .. head .. position .. tail
  if room.has_grown then
    redis.call('XADD', room.log, position, 'p', publication)
  else
    redis.call('XADD', room.log, 'MINID', oldest, position, 'p', publication)
    room.has_grown = true
  end
  room.position = position
  room.count = room.count + 1
  room.bytes = room.bytes + #publication
  if publish ~= '' then redis.call(publish, room.live, publication) end
  return position
end

-- Whether nothing of this id was delivered before; from now on it was. Or the rooms that refused it before, as keys.
local marker
local function is_first(id, base)
  local name = (ids ~= '' and ids or base .. ':id:') .. id
  if redis.call('SET', name, '1', 'NX', 'EX', keep_marker) then
    marker = name
    return true
  end
  local known = ids ~= '' and whole == '' and redis.call('GET', name)  -- (a backbone has no right to, and nothing to repeat)
  if not known or known == '1' then return false end
  local left = {}
  for room in string.gmatch(known, '[^\n]+') do left[room] = true end
  return left
end

-- The entry that is being appended: `is_new` as `is_first` says, nil until that is known; the rooms that refuse it now, and why.
local source, entry, id, excluded, tail, positions, is_new, is_taken, refused, why
-- Where `append_all` stands, and in how many more rooms the entry belongs: after a failure it goes on with the next room.
local argument, key, left = 14, 0, 0
local answers, refusals = {}, {}
local function append_all()
  for i = 1, whole ~= '' and #KEYS or 0 do
    local room = room_of(KEYS[i], '')
    if i > 1 and not room.is_unknown then redis.call('XLEN', room.log) end
  end
  while true do
    while left > 0 do
      argument, key, left = argument + 1, key + 1, left - 1
      if ids == '' then marker = nil end
      local base = KEYS[key]
      local room, position = room_of(base, source), ''
      if room.is_unknown then
        position = '0'
      elseif is_new_in(room, source, entry) then
        if is_new == nil or (ids == '' and id ~= '') then is_new = is_first(id, base) end
        if is_new == true or is_new and is_new[base] then position = append(room, excluded, ARGV[argument], tail) end
        if is_new and is_new ~= true then is_new[base] = nil end
        room.sources[source] = entry
      end
      positions[#positions + 1] = position
      is_taken = is_taken or position ~= ''
    end
    if why then refusals[#refusals + 1] = {tostring(#answers - 1), why} end
    if (why or is_new ~= true) and is_new and id ~= '' and ids ~= '' then
      -- The mark names the rooms that have refused an id that others have taken. If none has, it was not delivered.
      local rooms, list = is_new == true and {} or is_new, {}
      for base in pairs(refused or {}) do rooms[base] = true end
      for base in pairs(rooms) do list[#list + 1] = base end
      if is_new == true and not is_taken then
        redis.call('DEL', ids .. id)
      else
        redis.call('SET', ids .. id, list[1] and table.concat(list, '\n') or '1', 'EX', keep_marker)
      end
    end
    if argument >= #ARGV then return end
    left, source, entry, id, excluded, tail = unpack(ARGV, argument + 1, argument + 6)
    argument, left, positions = argument + 6, left + 0, {}
    marker, is_new, is_taken, refused, why = nil, id == '' or nil, false, nil, nil
    answers[#answers + 1] = positions
  end
end

local function save(room)
  if room.has_grown then
    -- What has never had more cannot hold more.
    if room.count > size then redis.call('XTRIM', room.log, 'MAXLEN', size) end
    redis.call('PEXPIRE', room.log, ttl)
    if room.bytes > bytes then room.bytes = shrink(room.log) end
  end
  local fields = {'position', room.position, 'count', room.count, 'bytes', room.bytes}
  for source, entry in pairs(room.sources) do
    if source ~= '' and entry then
      fields[#fields + 1] = source
      fields[#fields + 1] = entry
    end
  end
  redis.call('HSET', room.key, unpack(fields))
  redis.call('EXPIRE', room.key, keep_room)
end

-- The text of an error in Redis' form: its code comes first.
local function text_of(failure)
  local text = type(failure) == 'table' and failure.err or tostring(failure)
  return string.match(text, '^%u+ ') and text or 'ERR ' .. text
end

local is_done, failure = pcall(append_all)
local failed = 0  -- the room in which it did last
while not is_done and whole == '' and key > failed do
  local text = text_of(failure)
  local code = string.match(text, '^%u+')
  if code ~= 'ERR' and code ~= 'WRONGTYPE' then break end  -- Redis takes nothing, whichever room it is
  failed, why, refused = key, text, refused or {}
  refused[KEYS[key]] = true
  positions[#positions + 1] = ''
  if ids == '' and marker then redis.call('DEL', marker) end
  is_done, failure = pcall(append_all)
end
if not is_done and marker then redis.call('DEL', marker) end
for _, room in ipairs(touched) do
  local is_saved, why = pcall(save, room)  -- the others are saved all the same
  if not is_saved then is_done, failure = false, why end
end
if not is_done then
  return redis.error_reply(text_of(failure))
end

-- An entry's id as text that sorts like it. (An operator may have written one without its second part.)
local function order(entry)
  return string.format('%20s-%20s', string.match(entry .. '-0', '(%d+)-(%d+)'))
end
local function is_before(entry, other)
  -- Where the times have as many digits, and the numbers, too, the ids themselves sort: as a rule, and without the cost of formatting.
  local is_alike = #entry == #other and string.find(entry, '-', 1, true) == string.find(other, '-', 1, true)
  if is_alike then return entry < other end
  return order(entry) < order(other)
end
if ARGV[9] ~= '' and not refusals[1] then
  local known = redis.call('HGET', ARGV[9], ARGV[10])
  if not known or is_before(known, ARGV[11]) then redis.call('HSET', ARGV[9], ARGV[10], ARGV[11]) end
elseif whole ~= '' and not touched[1] then
  -- Nothing was written, but a replica, on which no connection has entered a room, or a Redis that is full, has to refuse it all the
  -- same. (To a key that does not exist, so nothing is added.)
  redis.call('XADD', ids, 'NOMKSTREAM', '*', 'p', '')
end
for _, refused in ipairs(refusals) do answers[#answers + 1] = refused end
return answers

-- Look after a stream that others write: entries that reading from the cursor on would miss, and entries of the future.
--
-- KEYS   the stream
-- ARGV   cursor: the entry up to which the stream was read; milliseconds that an id may be ahead of Redis' clock, or of the
--        cursor; a consumer group; '1' if the stream has had the group before; about how many entries one call deals with
--
-- Returns: the highest time of an id that may be read now; how many entries got new ids; the entries up to the cursor, if the
-- stream is not the one that was read.
--
-- Nothing reads by the group. It is there because it goes with the stream: where it is missing, the stream was deleted and
-- begun anew. Then entries may have been added below the cursor, where no read finds them. They are returned, some at a
-- time, until the caller has deleted all of them; only then the stream gets the group.
--
-- An id far ahead would let Redis give every later entry an id further ahead, and none at all after the last possible one. So
-- everything behind the cursor is added again, in the same order: what is not ahead by its own id, the rest by ids of now.
-- What was read before is not kept then. (XSETID alone does not go back behind an entry that was deleted.)

local stream, cursor, group, most = KEYS[1], ARGV[1], ARGV[3], tonumber(ARGV[5])

local function milliseconds(id)
  return tonumber((string.match(id, '^%d+')))
end

local time = redis.call('TIME')
local limit = math.max(time[1] * 1000 + math.floor(time[2] / 1000), milliseconds(cursor)) + ARGV[2]
local answer = string.format('%.0f', limit)

local made = redis.pcall('XGROUP', 'CREATE', stream, group, '0', 'MKSTREAM')
if not made.err and ARGV[4] == '1' then
  local missed = redis.call('XRANGE', stream, '-', cursor, 'COUNT', most)
  if #missed > 0 then
    redis.call('XGROUP', 'DESTROY', stream, group)
    return {answer, 0, missed}
  end
end

local function last_id()
  local info = redis.call('XINFO', 'STREAM', stream)
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then return info[i + 1] end
  end
end

if milliseconds(last_id()) <= limit then return {answer, 0, {}} end
local behind = redis.call('XRANGE', stream, '(' .. cursor, '+', 'COUNT', most)
-- What is to be read before them is read first: then this is little work.
if #behind == most and milliseconds(behind[1][1]) <= limit then return {answer, 0, {}} end
behind = redis.call('XRANGE', stream, '(' .. cursor, '+')
redis.call('DEL', stream)
redis.call('XGROUP', 'CREATE', stream, group, '0', 'MKSTREAM')
redis.call('XSETID', stream, cursor)
local moved = 0
for _, entry in ipairs(behind) do
  local id, fields = entry[1], entry[2]
  if milliseconds(id) > limit then
    id = '*'
    moved = moved + 1
  end
  -- One of ours has a single field; thousands could not be passed on.
  redis.call('XADD', stream, id, unpack(fields, 1, math.min(#fields, 1000)))
end
return {answer, moved, {}}

-- Publish messages at once, without the bridge, if nothing waits in the stream before them; else add them to the stream.
--
-- `append.lua` follows this part: what is decided here is whether it runs, and with which settings.
--
-- KEYS   as in append.lua
-- ARGV   as in append.lua, but in place of the five settings: the fingerprint of the catalogue, the number of messages, the key of the
--        cursors, where the leading bridge writes its catalogue and settings too, the stream, and one that is not used. (These are no
--        KEYS: for those a user would need the right to write.) Behind all of them the messages, as they are added to the stream
--
-- Returns what append.lua does, or nothing if the messages were added to the stream.

do
  local fingerprint, number, cursors, stream = unpack(ARGV, 1, 4)
  local first = #ARGV - number + 1
  local known = redis.call('HMGET', cursors, 'size', 'ttl', 'bytes', 'room', 'marker', 'catalogue', stream)
  if known[6] ~= fingerprint or redis.call('XRANGE', stream, '(' .. (known[7] or '0-0'), '+', 'COUNT', 1)[1] then
    for i = first, #ARGV do redis.call('XADD', stream, '*', 'message', ARGV[i]) end
    return false
  end
  for i = #ARGV, first, -1 do ARGV[i] = nil end
  for i = 1, 5 do ARGV[i] = known[i] end
end


-- Publish messages at once, without the bridge, if nothing waits in the stream before them; else add them to the stream.
--
-- `append.lua` follows this part: what is decided here is whether it runs, and with which settings.
--
-- KEYS   as in append.lua
-- ARGV   as in append.lua, but in place of the five settings: the fingerprint of the catalogue, the number of messages, the key of the
--        cursors, where the leading bridge writes its catalogue and settings too, the stream, and whether to look if the user has all
--        rights ('' = no; before Redis 7 no script can). (The keys are not in KEYS: for those a user would need the right to write.)
--        Behind all of them the messages, as they are added to the stream
--
-- Returns what append.lua does, or nothing if the messages were added to the stream.

do
  local fingerprint, number, cursors, stream = unpack(ARGV, 1, 4)
  local first = #ARGV - number + 1
  local known = redis.call('HMGET', cursors, 'size', 'ttl', 'bytes', 'room', 'marker', 'catalogue', stream)
  local is_allowed = known[6] == fingerprint
  for i = 1, 5 do is_allowed = is_allowed and known[i] end
  if not is_allowed or redis.call('XRANGE', stream, '(' .. (known[7] or '0-0'), '+', 'COUNT', 1)[1] then
    for i = first, #ARGV do redis.call('XADD', stream, '*', 'message', ARGV[i]) end
    return false
  end
  for i = 1, ARGV[5] ~= '' and redis.acl_check_cmd and #KEYS or 0 do
    local room, log, live = KEYS[i] .. ':room', KEYS[i] .. ':log', KEYS[i] .. ':live'
    for _, command in ipairs({
      {ARGV[8], live, ''}, {'PUBSUB', 'NUMSUB', live}, {'TIME'}, {'SET', ARGV[12] .. '1', '1', 'NX', 'EX', '1'},
      {'XADD', log, '*', 'p', ''}, {'XTRIM', log, 'MAXLEN', '1'}, {'XREVRANGE', log, '+', '-'}, {'XRANGE', log, '-', '+'},
      {'DEL', log}, {'PEXPIRE', log, '1'}, {'HSET', room, 'position', '1'}, {'HMGET', room, 'position'}, {'HGET', room, 'position'},
      {'EXPIRE', room, '1'},
    }) do
      if not redis.acl_check_cmd(unpack(command)) then
        return redis.error_reply('NOPERM no right to ' .. command[1] .. ' ' .. (command[2] or ''))
      end
    end
  end
  for i = #ARGV, first, -1 do ARGV[i] = nil end
  for i = 1, 5 do ARGV[i] = known[i] end
end


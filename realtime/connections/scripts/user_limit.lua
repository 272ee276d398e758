-- Record a connection of each of several users.
--
-- KEYS one sorted set a connection, its user's: channels by the time they were opened
-- ARGV most connections a user, seconds to remember them, then for each key: the time and the channel
--
-- Returns for each all channels of its user, oldest first, if there are too many, else nothing.

local answers = {}
for i, connections in ipairs(KEYS) do
  redis.call('ZADD', connections, ARGV[i * 2 + 1], ARGV[i * 2 + 2])
  redis.call('EXPIRE', connections, ARGV[2])
  local count = redis.call('ZCARD', connections)
  answers[i] = count > tonumber(ARGV[1]) and redis.call('ZRANGE', connections, 0, -1) or {}
end
return answers

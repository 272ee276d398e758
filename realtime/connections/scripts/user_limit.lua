-- Record a connection of each of several users.
--
-- KEYS one sorted set a connection, its user's: channels by the time they were opened
-- ARGV most connections a user, seconds to remember them, then for each key: the time and the channel
--
-- Returns for each all channels of its user, oldest first, if there are too many, else nothing.

local answers = {}
for i, connections in ipairs(KEYS) do
  -- Behind all others, also when the clock was set back since they were opened.
  local newest = redis.call('ZRANGE', connections, -1, -1, 'WITHSCORES')[2]
  local at = newest and math.max(tonumber(ARGV[i * 2 + 1]), tonumber(newest) + 1e-6) or tonumber(ARGV[i * 2 + 1])
  redis.call('ZADD', connections, string.format('%.6f', at), ARGV[i * 2 + 2])
  redis.call('EXPIRE', connections, ARGV[2])
  local count = redis.call('ZCARD', connections)
  answers[i] = count > tonumber(ARGV[1]) and redis.call('ZRANGE', connections, 0, -1) or {}
end
return answers

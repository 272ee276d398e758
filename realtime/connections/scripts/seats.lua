-- Take a seat for each of several users.
--
-- KEYS one sorted set a seat: channels by the time they were opened
-- ARGV most seats a user, seconds to remember them, then for each key: the time and the channel
--
-- Returns for each all seats of its user, oldest first, if there are too many, else nothing.

local answers = {}
for i, seats in ipairs(KEYS) do
  redis.call('ZADD', seats, ARGV[i * 2 + 1], ARGV[i * 2 + 2])
  redis.call('EXPIRE', seats, ARGV[2])
  local count = redis.call('ZCARD', seats)
  answers[i] = count > tonumber(ARGV[1]) and redis.call('ZRANGE', seats, 0, -1) or {}
end
return answers

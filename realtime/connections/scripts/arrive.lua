-- Let connections in that open together: unless it has to leave at once, each is recorded among those of its user.
--
-- KEYS for each connection: the connections of its user (a sorted set of channels by the time they were opened), the mark of its token,
--      the mark of its user. Without the marks, which are on other servers of a Cluster, it is recorded in any case
-- ARGV most connections a user (0: they are not counted), seconds to remember them, the channel of each connection
--
-- Returns the time, then for each connection: 0 if its token was revoked or its user disconnected since, else all
-- channels of its user, oldest first, if there are too many, else nothing.

local most, seconds, number = tonumber(ARGV[1]), ARGV[2], #ARGV - 2
local time = redis.call('TIME')
local now = string.format('%d.%06d', time[1], time[2])

local function let_in(connections, channel)
  if most == 0 then return {} end
  -- Behind all others, also when the clock was set back since they were opened.
  local newest = redis.call('ZRANGE', connections, -1, -1, 'WITHSCORES')[2]
  local at = newest and math.max(tonumber(now), tonumber(newest) + 1e-6) or tonumber(now)
  redis.call('ZADD', connections, string.format('%.6f', at), channel)
  redis.call('EXPIRE', connections, seconds)
  return redis.call('ZCARD', connections) > most and redis.call('ZRANGE', connections, 0, -1) or {}
end

local function must_leave(token, user)
  local marks = redis.call('MGET', token, user)
  return marks[1] or (marks[2] and tonumber(marks[2]) >= tonumber(now))
end

local answers, width = {now}, #KEYS / number
for i = 1, number do
  local connections, token, user = unpack(KEYS, (i - 1) * width + 1, i * width)
  answers[i + 1] = token and must_leave(token, user) and 0 or let_in(connections, ARGV[i + 2])
end
return answers

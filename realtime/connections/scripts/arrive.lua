-- Let connections in that open together: unless it has to leave at once, each is recorded among those of its user.
--
-- KEYS for each connection: the mark of its token, the mark of its user, the connections of its user
-- ARGV most connections a user (0: they are not counted), seconds to remember them, the channel of each connection
--
-- Returns the time, then for each connection: 0 if its token was revoked or its user disconnected since, else all
-- channels of its user, oldest first, if there are too many, else nothing.

local most, seconds = tonumber(ARGV[1]), ARGV[2]
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

local answers = {now}
for i = 1, #KEYS / 3 do
  local marks = redis.call('MGET', KEYS[i * 3 - 2], KEYS[i * 3 - 1])
  local leaves = marks[1] or (marks[2] and tonumber(marks[2]) >= tonumber(now))
  answers[i + 1] = leaves and 0 or let_in(KEYS[i * 3], ARGV[i + 2])
end
return answers

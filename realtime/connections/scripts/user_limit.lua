-- Record a connection of a user.
--
-- KEYS the user's connections: a sorted set of channels by the time they were opened
-- ARGV most connections a user, seconds to remember them, the time and the channel of the new one
--
-- Returns all channels of the user, oldest first, if there are too many, else nothing.

local connections, at = KEYS[1], tonumber(ARGV[3])
-- Behind all others, also when the clock was set back since they were opened.
local newest = redis.call('ZRANGE', connections, -1, -1, 'WITHSCORES')[2]
if newest then at = math.max(at, tonumber(newest) + 1e-6) end
redis.call('ZADD', connections, string.format('%.6f', at), ARGV[4])
redis.call('EXPIRE', connections, ARGV[2])
return redis.call('ZCARD', connections) > tonumber(ARGV[1]) and redis.call('ZRANGE', connections, 0, -1) or {}

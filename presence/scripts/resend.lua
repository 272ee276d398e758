-- Moves dead letters back onto the bus. Each is removed and its message is appended, both or neither, however often and
-- by however many callers it is asked for.
-- KEYS: the dead letters, the stream of the bus. ARGV: for each letter its id and the message to append.
-- Returns 1 for each letter that was moved, 0 for one that was not there any more.

local moved = {}
for number = 1, #ARGV, 2 do
    local id, message = ARGV[number], ARGV[number + 1]
    local is_there = #redis.call('XRANGE', KEYS[1], id, id) > 0
    if is_there then
        redis.call('XADD', KEYS[2], '*', 'message', message) -- first: it may be refused, and then nothing is lost
        redis.call('XDEL', KEYS[1], id)
    end
    moved[#moved + 1] = is_there and 1 or 0
end
return moved

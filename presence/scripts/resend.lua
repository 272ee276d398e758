-- Moves dead letters back onto the bus. Each is removed and its message is appended, both or neither, however often and
-- by however many callers it is asked for.
-- KEYS: the dead letters, the answer to this call. ARGV: the stream of the bus, then for each letter its id and the message
-- to append. The stream is none of the KEYS, which a user has to be allowed to read: the web side only writes it.
-- Returns for each letter, separated by spaces, 1 if it was moved, 0 if it was not there any more. A call that is repeated
-- because its answer was lost gets the same answer, not that the letters are gone.

local answer = redis.call('GET', KEYS[2])
if answer then return answer end

local moved = {}
for number = 2, #ARGV, 2 do
    local id, message = ARGV[number], ARGV[number + 1]
    local is_there = #redis.call('XRANGE', KEYS[1], id, id) > 0
    if is_there then
        redis.call('XADD', ARGV[1], '*', 'message', message) -- first: it may be refused, and then nothing is lost
        redis.call('XDEL', KEYS[1], id)
    end
    moved[#moved + 1] = is_there and 1 or 0
end
answer = table.concat(moved, ' ')
redis.call('SET', KEYS[2], answer, 'EX', 60)
return answer

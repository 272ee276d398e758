-- The members of a group, those in grace included, part by part: the cursor of the next part ('0': none), then
-- user, name, status, since, user, … A part may name a user again.
--
-- KEYS[1] base of all presence keys   ARGV[1] the group   ARGV[2] cursor, at first '0'   ARGV[3] about how many

local found = redis.call('SSCAN', KEYS[1] .. ':group:' .. ARGV[1], ARGV[2], 'COUNT', ARGV[3])
local part = {found[1]}
for _, user in ipairs(found[2]) do
  local record = redis.call('HMGET', KEYS[1] .. ':user:' .. user, 'name', 'status', 'since')
  if record[2] then
    part[#part + 1] = user
    part[#part + 1] = record[1]
    part[#part + 1] = record[2]
    part[#part + 1] = record[3]
  end
end
return part

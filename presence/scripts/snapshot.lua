-- Who is in a group, those in grace included: user, name, status, since, user, …
--
-- KEYS[1] base of all presence keys   ARGV[1] the group

local members = {}
for _, user in ipairs(redis.call('SMEMBERS', KEYS[1] .. ':group:' .. ARGV[1])) do
  local record = redis.call('HMGET', KEYS[1] .. ':user:' .. user, 'name', 'status', 'since')
  if record[2] then
    members[#members + 1] = user
    members[#members + 1] = record[1]
    members[#members + 1] = record[2]
    members[#members + 1] = record[3]
  end
end
return members

-- Everything that changes presence, atomically: a state is never changed without its announcement.
--
-- KEYS[1]  first part of all keys of a namespace, `{realtime:presence}` for the hub, `{realtime:presence}:portal` for the
--          portal: the stream's own name is the hash tag, so all are in one Cluster slot
-- KEYS[2]  the stream of transitions, `realtime:presence`
-- ARGV[1]  JSON {namespace, instance, epoch, number, acked, registers, seed, lease, grace, away, ttl, remember, work,
--          lingers, operations}; durations in milliseconds, away 0: never; lingers: a group that none of the user's
--          connections has any more stays for the grace period; `number` counts the calls of the instance, `acked` is
--          the last one that was answered; `work`: about how many connections and groups one call may deal with
--
-- Answers {epoch, 'reset'} without doing anything when `instance` has no lease any more, when `epoch` is not this
-- Redis' own, or when it does not know of the call `acked` (a replica that took over without the newest writes): the
-- instance must register all its connections first. Else {epoch, 'ok', one answer for each operation}; operations at
-- the end that have no answer were not done, since those before them were work enough.
--
-- While a script runs, Redis does nothing else. So no call deals with more than `work` allows, except that one user's
-- connections are dealt with together.
--
-- The keys (all times are milliseconds of Redis' clock; an instance is called node in keys and values):
--   epoch        changes when Redis was wiped
--   nodes        zset  instance -> end of its lease      node:<id>   set of its connections
--   calls        hash  instance -> its last call; an instance whose connections are being taken off has none
--   connections  hash  connection -> {node, user, groups}
--   open:<user>  set of the user's connections           user:<id>   hash: the presence record, with a TTL
--   known        hash  user -> {name, groups}: what is needed to announce offline when the record is gone
--   away         set of users who are away; all other known users are online
--   group:<g>    set of users, including those in their grace period
--   deadlines    zset  away|user, grace|user, lost|user|group -> when; in the user's id, ':' stands for '|'
--   regroup      set of users who lost a connection to a dead instance: their groups are decided after all dead instances
--   order:<user> the bus message, or the user's own choice, up to which a status is settled
--   forgotten:<user>  the user was announced offline by `forget`
--   touched      when this script last ran
--   postponed    until when everything due is put off, while that is being done

local base, stream = KEYS[1], KEYS[2]
local call = cjson.decode(ARGV[1])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local spent = 0  -- connections dealt with, and groups

local function key(...) return table.concat({base, ...}, ':') end
local function number(value) return string.format('%.0f', value) end

-- cjson writes an empty table as {}.
local function list(values)
  return #values == 0 and '[]' or cjson.encode(values)
end

-- ISO 8601 in UTC; the calendar after H. Hinnant, "chrono-Compatible Low-Level Date Algorithms", civil_from_days.
local function iso(ms)
  local seconds = math.floor(ms / 1000)
  local z = math.floor(seconds / 86400) + 719468
  local era = math.floor(z / 146097)
  local doe = z - era * 146097
  local yoe = math.floor((doe - math.floor(doe / 1460) + math.floor(doe / 36524) - math.floor(doe / 146096)) / 365)
  local doy = doe - (365 * yoe + math.floor(yoe / 4) - math.floor(yoe / 100))
  local mp = math.floor((5 * doy + 2) / 153)
  local day = doy - math.floor((153 * mp + 2) / 5) + 1
  local month = mp < 10 and mp + 3 or mp - 9
  local year = yoe + era * 400 + (month <= 2 and 1 or 0)
  local rest = seconds % 86400
  return string.format('%04d-%02d-%02dT%02d:%02d:%02d.%03dZ', year, month, day,
    math.floor(rest / 3600), math.floor(rest % 3600 / 60), rest % 60, ms % 1000)
end

local function announce(user, from, to, reason, name, groups, more)
  redis.call('XADD', stream, '*', 'transition', '{"user_id":' .. cjson.encode(user)
    .. ',"namespace":"' .. call.namespace .. '","from":"' .. from .. '","to":"' .. to .. '","reason":"' .. reason
    .. '","at":"' .. iso(now) .. '","name":' .. cjson.encode(name) .. ',"groups":' .. list(groups)
    .. (more or '') .. '}')
end

local function record(user)
  local values = redis.call('HMGET', key('user', user), 'status', 'chosen', 'since', 'name', 'lost', 'lost_until')
  if not values[1] then return nil end
  return {status = values[1], chosen = values[2] == '1', since = tonumber(values[3]), name = values[4],
    lost = values[5] or 'grace', lost_until = tonumber(values[6]) or 0}
end

local function known(user)
  local value = redis.call('HGET', key('known'), user)
  return value and cjson.decode(value) or nil
end

local function remember(user, name, groups)
  redis.call('HSET', key('known'), user, '{"name":' .. cjson.encode(name) .. ',"groups":' .. list(groups) .. '}')
end

local function keep(user, extra)
  redis.call('PEXPIRE', key('user', user), number(call.ttl + (extra or 0)))
end

local function write(user, status, chosen, since, name)
  redis.call('HSET', key('user', user), 'status', status, 'chosen', chosen and '1' or '0',
    'since', number(since), 'name', name)
  redis.call(status == 'away' and 'SADD' or 'SREM', key('away'), user)
end

-- No id has a colon in it.
local function deadline(what, user) return what .. '|' .. user:gsub('|', ':') end

local function open(user) return redis.call('SCARD', key('open', user)) end

local function watch(user, status)
  if status == 'online' and call.away > 0 and open(user) > 0 then
    redis.call('ZADD', key('deadlines'), number(now + call.away), deadline('away', user))
  else
    redis.call('ZREM', key('deadlines'), deadline('away', user))
  end
end

local function change(user, to, chosen, reason)
  local was = record(user)
  write(user, to, chosen, was.status == to and was.since or now, was.name)
  if was.status ~= to then
    announce(user, was.status, to, reason, was.name, known(user).groups)
  end
  watch(user, to)
end

local function state(user)
  local is = record(user)
  if not is then return '' end
  return cjson.encode({status = is.status, chosen = is.chosen, since = is.since})
end

-- The union over the user's open connections, in order of name.
local function union(user)
  local seen, groups = {}, {}
  for _, connection in ipairs(redis.call('SMEMBERS', key('open', user))) do
    spent = spent + 1
    for _, group in ipairs(cjson.decode(redis.call('HGET', key('connections'), connection)).groups) do
      if not seen[group] then
        seen[group] = true
        groups[#groups + 1] = group
      end
    end
  end
  table.sort(groups)
  return groups
end

local function difference(from, to)
  local has, missing = {}, {}
  for _, group in ipairs(to) do has[group] = true end
  for _, group in ipairs(from) do
    if not has[group] then missing[#missing + 1] = group end
  end
  return missing
end

local function lost(user, group) return deadline('lost', user) .. '|' .. group end

-- A user who reloads a page is back in one group after the other: a lost group stays until its own grace period is
-- over, unless the right to it ended (`dropped`).
local function linger(user, old, groups, dropped)
  for _, group in ipairs(groups) do redis.call('ZREM', key('deadlines'), lost(user, group)) end
  for _, group in ipairs(difference(difference(old, groups), dropped or {})) do
    groups[#groups + 1] = group
    if open(user) > 0 then
      redis.call('ZADD', key('deadlines'), 'NX', number(now + call.grace), lost(user, group))
    end
  end
end

-- Announced only to the groups that were gained or lost: for the other groups nothing changed.
local function regroup(user, reason, silent, dropped)
  local old, groups, is = known(user), union(user), record(user)
  if call.lingers then linger(user, old.groups, groups, dropped) end
  local gained, lost = difference(groups, old.groups), difference(old.groups, groups)
  for _, group in ipairs(gained) do redis.call('SADD', key('group', group), user) end
  for _, group in ipairs(lost) do redis.call('SREM', key('group', group), user) end
  remember(user, is.name, groups)
  if not silent and #gained + #lost > 0 then
    announce(user, is.status, is.status, reason, is.name, groups,
      ',"since":"' .. iso(is.since) .. '","gained":' .. list(gained) .. ',"lost":' .. list(lost))
  end
end

-- The record was lost: nothing changed for clients that know of the user, and the other clients are told.
local function regained(user, as)
  local groups = known(user).groups
  announce(user, as.status, as.status, 'reset', known(user).name, groups,
    ',"since":"' .. iso(as.since) .. '","gained":' .. list(groups) .. ',"lost":[]')
end

local function offline(user, reason)
  local was, old = record(user), known(user)
  spent = spent + 1
  if old then
    spent = spent + #old.groups
    for _, group in ipairs(old.groups) do redis.call('SREM', key('group', group), user) end
    announce(user, was and was.status or 'online', 'offline', reason, old.name, old.groups)
  end
  redis.call('HDEL', key('known'), user)
  redis.call('SREM', key('away'), user)
  redis.call('DEL', key('user', user), key('open', user))
  redis.call('ZREM', key('deadlines'), deadline('away', user), deadline('grace', user))
end

-- A connection is gone. `at`: when the grace period began. No reason: it logged out, and there is no grace period.
-- `later`: its user may be about to lose more connections, so the groups are decided after those.
local function lose(connection, at, reason, later)
  spent = spent + 1
  local value = redis.call('HGET', key('connections'), connection)
  if not value then return end
  local of = cjson.decode(value)
  local user = of.user
  redis.call('HDEL', key('connections'), connection)
  redis.call('SREM', key('node', of.node), connection)
  redis.call('SREM', key('open', user), connection)
  local is = record(user)
  local until_ = math.max(is and is.lost_until or 0, reason and at + call.grace or 0)
  if open(user) > 0 then
    if is then
      redis.call('HSET', key('user', user), 'lost_until', number(until_))
      if later then redis.call('SADD', key('regroup'), user) else regroup(user, reason or 'logout') end
    end
  elseif until_ <= now and not reason then
    offline(user, 'logout')
  else
    -- Kept beside the deadline, which outlives the record.
    if is then redis.call('HSET', key('user', user), 'lost', reason or is.lost) end
    keep(user, math.max(until_ - now, 0))
    redis.call('ZREM', key('deadlines'), deadline('away', user))
    redis.call('ZADD', key('deadlines'), number(until_), deadline('grace', user))
  end
end

-- Whether nothing later than `order` has settled this user's status; from now on it is settled up to there. Kept apart
-- from the record: a bus message may be handled again after the user has left and come back.
local function settle(user, order)
  local last = redis.call('GET', key('order', user))
  if last and last >= order then return false end
  redis.call('SET', key('order', user), order, 'PX', number(call.remember))
  return true
end

-- Sorts before all that was added to a stream in that millisecond.
local function millisecond(at) return string.format('%020.0f-', math.floor(at)) end

local does = {}

-- {connection, user, name, groups, dropped?, refreshed?, restored?: {status, chosen, since}, silent?}
function does.connect(op)
  local user, is = op.user, record(op.user)
  local returning = known(user) ~= nil
  redis.call('HSET', key('connections'), op.connection, '{"node":' .. cjson.encode(call.instance)
    .. ',"user":' .. cjson.encode(user) .. ',"groups":' .. list(op.groups) .. '}')
  redis.call('SADD', key('node', call.instance), op.connection)
  redis.call('SADD', key('open', user), op.connection)
  redis.call('ZREM', key('deadlines'), deadline('grace', user))
  if is then
    redis.call('HSET', key('user', user), 'name', op.name)
    if not op.refreshed then redis.call('HDEL', key('user', user), 'lost', 'lost_until') end
    if is.status == 'away' and not is.chosen and not op.refreshed and not op.restored then
      change(user, 'online', false, 'connect')
    elseif op.restored and op.restored.since > is.since and op.restored.status ~= is.status then
      change(user, op.restored.status, op.restored.chosen, 'reset')  -- Redis lost its last writes
    elseif not op.refreshed then
      watch(user, is.status)
    end
    regroup(user, 'connect', op.silent, op.dropped)
  else
    local as = (op.silent or returning) and op.restored or {status = 'online', chosen = false, since = now}
    write(user, as.status, as.chosen, as.since, op.name)
    if not returning then remember(user, op.name, {}) end
    regroup(user, 'connect', true)
    watch(user, as.status)
    if not op.silent and not returning then
      announce(user, 'offline', as.status, 'connect', op.name, union(user))
    elseif returning then
      regained(user, as)  -- clients may have read a snapshot without the user
    end
  end
  keep(user)
  return state(user)
end

-- {connection, groups, dropped}: it is in other groups now
function does.regroup(op)
  local value = redis.call('HGET', key('connections'), op.connection)
  if not value then return '' end
  local of = cjson.decode(value)
  redis.call('HSET', key('connections'), op.connection, '{"node":' .. cjson.encode(of.node)
    .. ',"user":' .. cjson.encode(of.user) .. ',"groups":' .. list(op.groups) .. '}')
  if record(of.user) then regroup(of.user, 'connect', false, op.dropped) end
  return ''
end

-- {connection}
function does.disconnect(op) lose(op.connection, now, 'grace') return '' end

-- {connection, at?}
function does.logout(op)
  local value = redis.call('HGET', key('connections'), op.connection)
  if value and op.at then settle(cjson.decode(value).user, millisecond(op.at)) end
  lose(op.connection, now, nil)
  return ''
end

-- {user}
function does.heartbeat(op)
  local is = record(op.user)
  if not is or open(op.user) == 0 then return '' end
  if is.status == 'away' and not is.chosen then
    change(op.user, 'online', false, 'heartbeat')
  else
    watch(op.user, is.status)
  end
  keep(op.user)
  return state(op.user)
end

-- {user}: sent a frame that is no heartbeat. Like the answer to a heartbeat or a choice, this one is empty when there is
-- no record: it shows the instance that Redis has lost something.
function does.touch(op)
  if open(op.user) > 0 then keep(op.user) end
  return state(op.user)
end

-- {user, status, reason, order | at}: a choice from the bus has an order, and does nothing when it arrives again or too
-- late. A user's own choice counts whenever it comes, and was made at `at`, before all that was added in or after that
-- millisecond.
function does.choose(op)
  if op.at then settle(op.user, millisecond(op.at)) end
  if op.order and not settle(op.user, op.order) then return '' end
  if not record(op.user) then return '' end
  change(op.user, op.status, op.status == 'away', op.reason)
  if open(op.user) > 0 then keep(op.user) end
  return state(op.user)
end

-- {user, name, groups, restored: {status, chosen, since}, remaining}: was in grace when Redis lost everything
function does.grace(op)
  if known(op.user) then return '' end
  write(op.user, op.restored.status, op.restored.chosen, op.restored.since, op.name)
  redis.call('HSET', key('user', op.user), 'lost', 'reset')
  remember(op.user, op.name, op.groups)
  for _, group in ipairs(op.groups) do redis.call('SADD', key('group', group), op.user) end
  local remaining = math.max(op.remaining, call.lease)
  redis.call('ZADD', key('deadlines'), number(now + remaining), deadline('grace', op.user))
  keep(op.user, remaining)
  return ''
end

-- {user, name, groups, status}: the database has a user as present whom Redis does not know
function does.forget(op)
  if known(op.user) or redis.call('SET', key('forgotten', op.user), '1', 'NX', 'PX', number(call.ttl)) == false then
    return ''
  end
  announce(op.user, op.status, 'offline', 'reset', op.name, op.groups)
  return 'offline'
end

-- {}: how many users are online and away, and for how long the most overdue change has been due
function does.measure()
  local late = 0
  for _, zset in ipairs({key('nodes'), key('deadlines')}) do
    local first = redis.call('ZRANGE', zset, 0, 0, 'WITHSCORES')
    if first[2] then late = math.max(late, now - tonumber(first[2])) end
  end
  local known, away = redis.call('HLEN', key('known')), redis.call('SCARD', key('away'))
  return cjson.encode({online = known - away, away = away, late = late})
end

-- Make the members between two scores due at `to`, as many as one call may. Answers whether there are no more.
local function move(zset, first, last, to)
  local most = call.work * 10  -- one is a tenth of the work that a connection is
  local members = redis.call('ZRANGEBYSCORE', zset, first, last, 'LIMIT', 0, most)
  for _, member in ipairs(members) do redis.call('ZADD', zset, to, member) end
  return #members < most
end

-- When this script has not run for half a lease, Redis stood still, or all its callers did. A deadline may have passed
-- only because it could not be renewed, so all that have passed are put off by one lease, in as many calls as that
-- takes. When it last ran in the future, the clock was set back: nothing is due later than if it began now. Answers
-- whether it is done.
local function postpone()
  local touched = tonumber(redis.call('GET', key('touched')) or now)
  if now < touched then
    local lease, latest = number(now + call.lease), number(now + math.max(call.lease, call.grace, call.away))
    if not move(key('nodes'), '(' .. lease, '+inf', lease)
        or not move(key('deadlines'), '(' .. latest, '+inf', latest) then
      return false
    end
    redis.call('DEL', key('postponed'))
  elseif now - touched > call.lease / 2 then
    -- Records may have expired, so all instances must register again. They do so, too, when the clock was set forward.
    if now - touched > call.ttl / 4 then redis.call('DEL', key('calls')) end
    redis.call('SET', key('postponed'), number(now + call.lease), 'NX', 'PX', number(call.lease))
    local till = redis.call('GET', key('postponed'))
    if not move(key('nodes'), '-inf', '(' .. till, till) or not move(key('deadlines'), '-inf', '(' .. till, till) then
      return false
    end
    redis.call('DEL', key('postponed'))
  end
  redis.call('SET', key('touched'), number(now))
  return true
end
local is_postponed = postpone()

local function due(zset, most)
  return redis.call('ZRANGEBYSCORE', key(zset), '-inf', number(now), 'LIMIT', 0, most)
end

-- One of many changes: a value that can't be read, or a key of another program, fails alone.
local failed = 0
local function alone(change_one, ...)
  if not pcall(change_one, ...) then failed = failed + 1 end
end

-- Take connections off instances whose lease has ended. An instance stays due until it has none; one that comes back
-- before that has no last call, and so must register.
local function expire_instances()
  local taken = 0
  for _, instance in ipairs(due('nodes', 10)) do
    local ended = tonumber(redis.call('ZSCORE', key('nodes'), instance))
    redis.call('HDEL', key('calls'), instance)
    for _, connection in ipairs(redis.call('SPOP', key('node', instance), call.work - taken)) do
      alone(lose, connection, ended, 'lease', true)
      taken = taken + 1
    end
    if redis.call('SCARD', key('node', instance)) == 0 then redis.call('ZREM', key('nodes'), instance) end
    if taken >= call.work then break end
  end
  return taken
end

-- After all dead instances: a user who loses every connection keeps all groups during the grace period.
local function expire_groups()
  while spent < call.work and #due('nodes', 1) == 0 do
    local user = redis.call('SPOP', key('regroup'))
    if not user then break end
    alone(function()
      if record(user) and open(user) > 0 then regroup(user, 'lease') end
    end)
  end
end

local changed = 0
local function pass_deadline(member)
  local what, user, group = member:match('^(%a+)|([^|]*)|?(.*)$')
  user = user:gsub(':', '|')
  local is = record(user)
  if what == 'grace' then
    offline(user, is and is.lost or 'grace')
    changed = changed + 1
  elseif what == 'lost' then
    if is then regroup(user, 'grace', false, {group}) end
    changed = changed + 1
  elseif is and is.status == 'online' then
    change(user, 'away', false, 'timeout')
    changed = changed + 1
  end
end

local function pass_deadlines()
  for _, member in ipairs(due('deadlines', call.work)) do
    if spent >= call.work then break end
    spent = spent + 1
    redis.call('ZREM', key('deadlines'), member)
    alone(pass_deadline, member)
  end
end

-- {}: make the changes that are due. Answers how many were made, how many failed, and whether more are due.
function does.sweep()
  if not is_postponed then return '{"changed":0,"more":true}' end
  changed = expire_instances()
  spent = 0
  expire_groups()
  spent = 0  -- deadlines do not wait for instances
  pass_deadlines()
  local more = #due('nodes', 1) + #due('deadlines', 1) + redis.call('SCARD', key('regroup')) > 0
  return cjson.encode({changed = changed, more = more, failed = failed})
end

-- {}: the instance stops; its connections were taken off before
function does.close()
  redis.call('ZREM', key('nodes'), call.instance)
  redis.call('HDEL', key('calls'), call.instance)
  redis.call('DEL', key('node', call.instance))
  return ''
end

redis.call('SET', key('epoch'), call.seed, 'NX')
local epoch = redis.call('GET', key('epoch'))
if call.instance ~= '' then
  local last = tonumber(redis.call('HGET', key('calls'), call.instance) or -1)
  if not call.registers
      and (epoch ~= call.epoch or last < call.acked or not redis.call('ZSCORE', key('nodes'), call.instance)) then
    return {epoch, 'reset'}
  end
  redis.call('HSET', key('calls'), call.instance, number(call.number))
  redis.call('ZADD', key('nodes'), number(now + call.lease), call.instance)
end

local answers = {epoch, 'ok'}
for i, op in ipairs(call.operations) do
  if spent >= call.work then break end
  answers[i + 2] = does[op.does](op)
end
return answers

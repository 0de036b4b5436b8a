-- Counts payments and answers what was known before each, in one round trip a batch.
--
-- KEYS[1]: the prefix of every key, with a hash tag: all keys lie in one slot of a cluster.
-- ARGV[1]: payments that were let through since; their payers' and vendors' profiles learn from them.
-- ARGV[2]: payments to observe.
-- ARGV[3]: for how many seconds an answer is remembered.
-- Answer: for each observed payment the state before it, RAW bytes as services/fraud/features/layout.py
-- reads them: payer, vendor, vendor's labels, payer's labels, the rest, incidents (see incidents.lua).
--
-- Decayed counters: v <- v * 2^(-(t - at) / h) + x. A late payment (t < at) adds x * 2^(-(at - t) / h),
-- so that the counter stays what it would be had all come in order.

local DAY = 86400
local PAYER_HALF_LIVES = {60, 600, 3600, DAY, 7 * DAY, 30 * DAY}
local VENDOR_HALF_LIVES = {3600, DAY, 7 * DAY, 28 * DAY}
local LATE_HALF_LIVES = {60, 600, 3600, DAY}

-- Payer: 1 counted to, 2 time of last position; 3-8 counts, 9-14 sums, 15 last amount, 16-17 last position;
-- profile: 18 payments, 19 mean, 20 variance, 21 greatest, 22-23 home, 24 its weight, 25-26 another place
-- that may become home, 27 its weight.
local PAYER = '<dd' .. string.rep('f', 25)
-- Vendor: 1 counted to; 2-5 counts, 6-9 offline, new payers, old codes, without position (7 d);
-- profile: 10 payments, 11 mean amount, 12 with distance, 13 mean distance.
local VENDOR = '<d' .. string.rep('f', 12)
local REST = '<dfff' .. string.rep('f', 10)

-- Lifetimes of keys, as the strings they are sent as.
local EIGHT_DAYS, PROFILE_LIFE, VENDORS_LIFE, DEVICES_LIFE = '691200', '7776000', '15552000', '34560000'

local PROFILE_WEIGHT_MAX = 50
local HOME_WEIGHT_MAX = 20
local HOME_JUMP_METERS = 50000
local HOME_MOVES_AFTER = 5
local WINSOR = 3
local LATE_SECONDS = 60
local LATE_KEPT = 128
local VENDORS_KEPT = 256
local DEVICES_KEPT = 8
local OLD_CODE_SECONDS = 3600

local EMPTY_PAYER = struct.pack(PAYER, -1, -1, 0,0,0,0,0,0, 0,0,0,0,0,0, -1, 0,0, 0,0,0,0, 0,0,0, 0,0,0)
local EMPTY_VENDOR = struct.pack(VENDOR, -1, 0,0,0,0, 0,0,0,0, 0,0,0,0)
local EMPTY_VENDOR_LABELS = struct.pack('<dddfffffdff', -1, -1, -1, 0,0,0,0,0, -1,0,0)
local EMPTY_PAYER_LABELS = struct.pack('<ddff', -1, -1, 0, 0)
local NO_DEVICE = string.rep('\0', 8)
local NO_INCIDENT = string.rep('\0', 16)
local NO_INCIDENTS = string.rep(NO_INCIDENT, 3)
local ANSWER_BYTES = #EMPTY_PAYER + #EMPTY_VENDOR + #EMPTY_VENDOR_LABELS + #EMPTY_PAYER_LABELS
  + struct.size(REST) + #NO_INCIDENTS

local prefix = KEYS[1] .. ':'
local unpack_record = struct.unpack
local pack_record = struct.pack

-- By haversine, as services/fraud/domain/distance.py.
local function meters(latitude, longitude, other_latitude, other_longitude)
  local phi, other_phi = math.rad(latitude), math.rad(other_latitude)
  local a = math.sin((other_phi - phi) / 2) ^ 2
    + math.cos(phi) * math.cos(other_phi) * math.sin(math.rad(other_longitude - longitude) / 2) ^ 2
  return 2 * 6371008.8 * math.asin(math.sqrt(math.min(1, a)))
end

-- The place a share of the way from one to another, the short way around the antimeridian.
local function towards(latitude, longitude, other_latitude, other_longitude, share)
  local east = (other_longitude - longitude + 540) % 360 - 180
  local to = longitude + share * east
  return latitude + share * (other_latitude - latitude), (to + 540) % 360 - 180
end

-- Where a tag stands in a list of records of one width; nil when it does not.
local function find(list, tag, width)
  local from = 1
  while true do
    local at = string.find(list, tag, from, true)
    if not at then return nil end
    if (at - 1) % width == 0 then return at end
    from = at + 1
  end
end

-- Decays counters first..first+#half_lives-1 of a record to its new time and counts x in each.
local function count(record, first, half_lives, gap, x)
  if gap >= 0 then
    for i = 1, #half_lives do
      local at = first + i - 1
      record[at] = record[at] * 2 ^ (-gap / half_lives[i]) + x
    end
  else
    for i = 1, #half_lives do
      local at = first + i - 1
      record[at] = record[at] + x * 2 ^ (gap / half_lives[i])
    end
  end
end

-- A payer's late payments, one by one: newer counters cannot say what an old minute held.
local function count_late(payer, t, amount, rest)
  local key = prefix .. 'late:' .. payer
  local list = redis.call('GET', key) or ''
  for at = 1, #list, 12 do
    local earlier, paid = unpack_record('<df', list, at)
    if earlier <= t then
      for i = 1, 4 do
        local weight = 2 ^ (-(t - earlier) / LATE_HALF_LIVES[i])
        rest[4 + i] = rest[4 + i] + weight
        rest[8 + i] = rest[8 + i] + weight * paid
      end
    end
  end
  list = pack_record('<df', t, amount) .. string.sub(list, 1, 12 * (LATE_KEPT - 1))
  redis.call('SET', key, list, 'EX', EIGHT_DAYS)
end

-- How many late payments a vendor had in the same hour and day before this one.
local function count_late_at_vendor(vendor, t, rest)
  local key = prefix .. 'late-vendor:' .. vendor .. ':' .. string.format('%d', math.floor(t / DAY))
  rest[13] = redis.call('HINCRBY', key, math.floor(t % DAY / 3600), 1) - 1
  rest[14] = redis.call('HINCRBY', key, 'day', 1) - 1
  redis.call('EXPIRE', key, EIGHT_DAYS)
end

-- A payment: t, amount, latitude, longitude, metres to site, code age, flags, payment, vendor and device
-- tag, payer, vendor. Flags: 1 position, 2 distance, 4 offline.
local PAYMENT = '<ddddddBc12c8c8Bc0Bc0'

local function settle(data, position)
  local t, amount, latitude, longitude, distance, _, flags, tag, vendor_tag, device, payer, vendor, next_position =
    unpack_record(PAYMENT, data, position)
  local payer_key, vendor_key = prefix .. 'p:' .. payer, prefix .. 'v:' .. vendor
  local vendors_key, devices_key = prefix .. 'pv:' .. payer, prefix .. 'pd:' .. payer
  local answer_key = prefix .. 'oi:' .. tag
  local got = redis.call('MGET', payer_key, vendor_key, vendors_key, devices_key, answer_key)
  if got[5] then
    if string.byte(got[5], 1) == 1 then return next_position end
    redis.call('SETRANGE', answer_key, 0, '\1')
  end

  local p = {unpack_record(PAYER, got[1] or EMPTY_PAYER)}
  local n, mean = p[18] + 1, p[19]
  local learnt = amount
  if p[18] > 0 then learnt = math.min(amount, WINSOR * mean) end
  local weight = 1 / math.min(n, PROFILE_WEIGHT_MAX)
  local step = learnt - mean
  p[18], p[19] = n, mean + weight * step
  p[20] = (1 - weight) * (p[20] + weight * step * step)
  p[21] = math.max(p[21], learnt)
  if flags % 2 == 1 then
    if p[24] == 0 then
      p[22], p[23], p[24] = latitude, longitude, 1
    elseif meters(p[22], p[23], latitude, longitude) <= HOME_JUMP_METERS then
      p[24] = math.min(p[24] + 1, HOME_WEIGHT_MAX)
      p[22], p[23] = towards(p[22], p[23], latitude, longitude, 1 / p[24])
      p[27] = math.max(p[27] - 1, 0)
    elseif p[27] > 0 and meters(p[25], p[26], latitude, longitude) <= HOME_JUMP_METERS then
      p[27] = p[27] + 1
      p[25], p[26] = towards(p[25], p[26], latitude, longitude, 1 / p[27])
      -- Whoever pays from elsewhere more often than ever from home has moved.
      if p[27] >= math.max(HOME_MOVES_AFTER, p[24]) then
        p[22], p[23], p[24], p[27] = p[25], p[26], p[27], 0
      end
    elseif p[27] <= 1 then
      p[25], p[26], p[27] = latitude, longitude, 1
    else
      p[27] = p[27] - 1
    end
  end
  redis.call('SET', payer_key, pack_record(PAYER, unpack(p, 1, 27)), 'EX', PROFILE_LIFE)

  local v = {unpack_record(VENDOR, got[2] or EMPTY_VENDOR)}
  v[10] = v[10] + 1
  weight = 1 / math.min(v[10], 4 * PROFILE_WEIGHT_MAX)
  learnt = amount
  if v[10] > 1 then learnt = math.min(amount, WINSOR * v[11]) end
  v[11] = v[11] + weight * (learnt - v[11])
  if flags % 4 >= 2 then
    v[12] = v[12] + 1
    v[13] = v[13] + (distance - v[13]) / math.min(v[12], PROFILE_WEIGHT_MAX)
  end
  redis.call('SET', vendor_key, pack_record(VENDOR, unpack(v, 1, 13)), 'EX', PROFILE_LIFE)

  local list, times = got[3] or '', 0
  local at = find(list, vendor_tag, 9)
  if at then
    times = string.byte(list, at + 8)
    list = string.sub(list, 1, at - 1) .. string.sub(list, at + 9)
  end
  list = vendor_tag .. string.char(math.min(times + 1, 255)) .. string.sub(list, 1, 9 * (VENDORS_KEPT - 1))
  redis.call('SET', vendors_key, list, 'EX', VENDORS_LIFE)

  if device ~= NO_DEVICE then
    list = got[4] or ''
    at = find(list, device, 16)
    if at ~= 1 then
      local since = pack_record('<d', t)
      if at then
        since = string.sub(list, at + 8, at + 15)
        list = string.sub(list, 1, at - 1) .. string.sub(list, at + 16)
      end
      redis.call('SET', devices_key, device .. since .. string.sub(list, 1, 16 * (DEVICES_KEPT - 1)), 'EX', DEVICES_LIFE)
    end
  end
  return next_position
end

local function observe(data, position, remember)
  local t, amount, latitude, longitude, _, code_age, flags, tag, vendor_tag, device, payer, vendor, next_position =
    unpack_record(PAYMENT, data, position)
  local payer_key, vendor_key, answer_key = prefix .. 'p:' .. payer, prefix .. 'v:' .. vendor, prefix .. 'oi:' .. tag
  local got = redis.call('MGET', answer_key, payer_key, vendor_key, prefix .. 'vl:' .. vendor,
    prefix .. 'pl:' .. payer, prefix .. 'pv:' .. payer, prefix .. 'pd:' .. payer,
    prefix .. 'iw:' .. vendor, prefix .. 'id:' .. vendor, prefix .. 'ip:' .. payer)
  -- An answer of an earlier version that said less is not repeated.
  if got[1] and #got[1] == 1 + ANSWER_BYTES then return string.sub(got[1], 2), next_position end
  local payer_before, vendor_before = got[2] or EMPTY_PAYER, got[3] or EMPTY_VENDOR

  local rest = {0, 0, -1, 0, 0,0,0,0, 0,0,0,0, 0,0}
  local at = got[6] and find(got[6], vendor_tag, 9)
  if at then rest[2] = string.byte(got[6], at + 8) end
  if got[7] then rest[4] = #got[7] / 16 end
  if device ~= NO_DEVICE then
    at = got[7] and find(got[7], device, 16)
    rest[3] = 0
    if at then
      rest[3] = 1
      rest[1] = unpack_record('<d', got[7], at + 8)
    end
  end

  local p = {unpack_record(PAYER, payer_before)}
  local gap = t - p[1]
  if p[1] < 0 then gap = 0 end
  if gap < -LATE_SECONDS then count_late(payer, t, amount, rest) end
  count(p, 3, PAYER_HALF_LIVES, gap, 1)
  count(p, 9, PAYER_HALF_LIVES, gap, amount)
  if gap >= 0 then p[1], p[15] = t, amount end
  if flags % 2 == 1 and t >= p[2] then p[2], p[16], p[17] = t, latitude, longitude end
  redis.call('SET', payer_key, pack_record(PAYER, unpack(p, 1, 27)), 'EX', PROFILE_LIFE)

  local v = {unpack_record(VENDOR, vendor_before)}
  gap = t - v[1]
  if v[1] < 0 then gap = 0 end
  if gap < -LATE_SECONDS then count_late_at_vendor(vendor, t, rest) end
  count(v, 2, VENDOR_HALF_LIVES, gap, 1)
  local kept, added = 1, 1
  if gap >= 0 then kept = 2 ^ (-gap / (7 * DAY)) else added = 2 ^ (gap / (7 * DAY)) end
  v[6] = v[6] * kept + (flags % 8 >= 4 and added or 0)
  v[7] = v[7] * kept + (rest[2] == 0 and added or 0)
  v[8] = v[8] * kept + (code_age > OLD_CODE_SECONDS and added or 0)
  v[9] = v[9] * kept + (flags % 2 == 0 and added or 0)
  if gap >= 0 then v[1] = t end
  redis.call('SET', vendor_key, pack_record(VENDOR, unpack(v, 1, 13)), 'EX', PROFILE_LIFE)

  local incidents = NO_INCIDENTS
  if got[8] or got[9] or got[10] then
    incidents = (got[8] or NO_INCIDENT) .. (got[9] or NO_INCIDENT) .. (got[10] or NO_INCIDENT)
  end
  -- A record of an earlier version lacks the last fields.
  local vendor_labels = got[4] or ''
  local answer = payer_before .. vendor_before
    .. vendor_labels .. string.sub(EMPTY_VENDOR_LABELS, #vendor_labels + 1)
    .. (got[5] or EMPTY_PAYER_LABELS) .. pack_record(REST, unpack(rest, 1, 14)) .. incidents
  redis.call('SET', answer_key, '\0' .. answer, 'EX', remember)
  return answer, next_position
end

local data, position = ARGV[1], 1
while position <= #data do
  position = settle(data, position)
end
local answers, n = {}, 0
data, position = ARGV[2], 1
while position <= #data do
  n = n + 1
  answers[n], position = observe(data, position, ARGV[3])
end
return table.concat(answers)

-- Takes up what payments turned out to be, in the order it became known.
--
-- KEYS[1]: the prefix of every key.
-- ARGV[1]: labels: t, fraud (0 or 1), like its payer (0 or 1), payer, vendor.
--
-- Vendor: 1 counted to, 2 last fraud, 3 first fraud of this run; 4-5 fraud (7 d, 28 d), 6-7 all labels
-- (7 d, 28 d), 8 honest since the last fraud; 9 first and 10 number of the frauds like their payers with
-- nothing honest since, 11 such frauds (28 d). Payer: 1 counted to, 2 last fraud; 3 fraud (14 d), 4 honest
-- since the last fraud.

local DAY = 86400
local VENDOR = '<dddfffffdff'
local EMPTY_VENDOR = struct.pack(VENDOR, -1, -1, -1, 0,0,0,0,0, -1,0,0)
local PAYER = '<ddff'
local NEW_RUN_AFTER_SECONDS = 28 * DAY
local NEW_RUN_AFTER_HONEST = 10

local prefix = KEYS[1] .. ':'

local function count(record, at, half_life, gap, x)
  if gap >= 0 then
    record[at] = record[at] * 2 ^ (-gap / half_life) + x
  else
    record[at] = record[at] + x * 2 ^ (gap / half_life)
  end
end

local function gap_of(record, t)
  if record[1] < 0 then return 0 end
  return t - record[1]
end

local function label_vendor(vendor, t, fraud, like_payer)
  local key = prefix .. 'vl:' .. vendor
  -- A record of an earlier version lacks the last fields.
  local got = redis.call('GET', key) or ''
  local v = {struct.unpack(VENDOR, got .. string.sub(EMPTY_VENDOR, #got + 1))}
  local gap = gap_of(v, t)
  count(v, 4, 7 * DAY, gap, fraud)
  count(v, 5, 28 * DAY, gap, fraud)
  count(v, 6, 7 * DAY, gap, 1)
  count(v, 7, 28 * DAY, gap, 1)
  count(v, 11, 28 * DAY, gap, fraud * like_payer)
  v[1] = math.max(v[1], t)
  if fraud == 1 then
    if v[2] < 0 or t - v[2] > NEW_RUN_AFTER_SECONDS or v[8] >= NEW_RUN_AFTER_HONEST then
      v[3] = t
    else
      v[3] = math.min(v[3], t)
    end
    if t >= v[2] then v[2], v[8] = t, 0 end
    if like_payer == 1 then
      v[9] = v[10] == 0 and t or math.min(v[9], t)
      v[10] = v[10] + 1
    end
  else
    if t > v[2] then v[8] = v[8] + 1 end
    if t > v[9] then v[9], v[10] = -1, 0 end
  end
  redis.call('SET', key, struct.pack(VENDOR, unpack(v, 1, 11)), 'EX', 120 * DAY)
end

local function label_payer(payer, t, fraud)
  local key = prefix .. 'pl:' .. payer
  local got = redis.call('GET', key)
  if not got and fraud == 0 then return end
  local p = got and {struct.unpack(PAYER, got)} or {-1, -1, 0, 0}
  count(p, 3, 14 * DAY, gap_of(p, t), fraud)
  p[1] = math.max(p[1], t)
  if fraud == 1 then
    if t >= p[2] then p[2], p[4] = t, 0 end
  elseif t > p[2] then
    p[4] = p[4] + 1
  end
  redis.call('SET', key, struct.pack(PAYER, unpack(p, 1, 4)), 'EX', 60 * DAY)
end

local data, position = ARGV[1], 1
while position <= #data do
  local t, fraud, like_payer, payer, vendor
  t, fraud, like_payer, payer, vendor, position = struct.unpack('<dBBBc0Bc0', data, position)
  label_vendor(vendor, t, fraud, like_payer)
  label_payer(payer, t, fraud)
end
return redis.status_reply('OK')

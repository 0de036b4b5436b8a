-- Counts incidents, each once.
--
-- KEYS[1]: the prefix of every key. ARGV, six for each: id, key, t, count, half-life in seconds, seconds to live.
-- A counter is its time and its value; it fades as those in features.lua.

local SEEN_SECONDS = 30 * 86400

local prefix = KEYS[1] .. ':'
for i = 1, #ARGV, 6 do
  if redis.call('SET', prefix .. 'ie:' .. ARGV[i], '', 'NX', 'EX', SEEN_SECONDS) then
    local key = prefix .. ARGV[i + 1]
    local t, count, half_life = tonumber(ARGV[i + 2]), tonumber(ARGV[i + 3]), tonumber(ARGV[i + 4])
    local at, value = t, 0
    local got = redis.call('GET', key)
    if got then at, value = struct.unpack('<dd', got) end
    if t >= at then
      value = value * 2 ^ (-(t - at) / half_life) + count
      at = t
    else
      value = value + count * 2 ^ (-(at - t) / half_life)
    end
    redis.call('SET', key, struct.pack('<dd', at, value), 'EX', ARGV[i + 5])
  end
end
return redis.status_reply('OK')

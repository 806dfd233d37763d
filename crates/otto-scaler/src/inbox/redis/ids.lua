-- Shared by the scripts: each begins with this.

-- Whether entry id a is above b. They are compared as text: a number of Lua holds 53 bits only. What is no id is below all.
local function above(a, b)
  local a_ms, a_seq = string.match(a, '^(%d+)-(%d+)$')
  local b_ms, b_seq = string.match(b, '^(%d+)-(%d+)$')
  if not (a_ms and b_ms) then return a_ms ~= nil end
  if a_ms ~= b_ms then return #a_ms > #b_ms or (#a_ms == #b_ms and a_ms > b_ms) end
  return #a_seq > #b_seq or (#a_seq == #b_seq and a_seq > b_seq)
end

-- A field of an XINFO answer.
local function field(flat, name)
  for i = 1, #flat, 2 do
    if flat[i] == name then return flat[i + 1] end
  end
end

-- Notes that everything up to an id is settled; never goes back.
local function mark(key, id)
  if above(id, redis.call('GET', key) or '') then redis.call('SET', key, id) end
end


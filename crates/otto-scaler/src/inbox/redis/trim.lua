-- Trims entries that every group of the stream has settled, and that are older than a time to keep.
--
-- KEYS: event stream
-- ARGV: newest id that may be trimmed ('MS-0')
-- Answers {entries trimmed, the group that holds most back or ''}.
local function above(a, b)
  local am, as = string.match(a, '^(%d+)-(%d+)$')
  local bm, bs = string.match(b, '^(%d+)-(%d+)$')
  if am ~= bm then return #am > #bm or (#am == #bm and am > bm) end
  return #as > #bs or (#as == #bs and as > bs)
end

local function field(flat, name)
  for i = 1, #flat, 2 do
    if flat[i] == name then return flat[i + 1] end
  end
end

if redis.call('EXISTS', KEYS[1]) == 0 then return {0, ''} end
local keep, holder = ARGV[1], ''
for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local name = field(group, 'name')
  -- The last delivered entry itself stays: it is one entry, and saves counting up its id.
  local floor = field(group, 'last-delivered-id')
  local pending = redis.call('XPENDING', KEYS[1], name)
  if pending[1] > 0 and above(floor, pending[2]) then floor = pending[2] end
  if above(keep, floor) then keep, holder = floor, name end
end
return {redis.call('XTRIM', KEYS[1], 'MINID', '~', keep), holder}

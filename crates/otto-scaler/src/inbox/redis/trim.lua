-- Trims entries that every group of the stream has settled, and that are older than a time to keep.
--
-- KEYS: event stream
-- ARGV: newest id that may be trimmed ('MS-0')
-- Answers {entries trimmed, the group that holds most back or ''}.
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

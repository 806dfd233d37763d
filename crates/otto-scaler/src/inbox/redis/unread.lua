-- Tells how many entries were deleted or trimmed before the group read them, until that loss is noted as told.
--
-- KEYS: event stream, what was told
-- ARGV: group
-- Answers {how many (at least), an id that names the loss, the id after which the group reads, what to note as told} or
-- {0}.
if redis.call('EXISTS', KEYS[1]) == 0 then return {0} end
local stream = redis.call('XINFO', 'STREAM', KEYS[1])
local group
for _, found in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  if field(found, 'name') == ARGV[1] then group = found end
end
if not group then return {0} end
local read, delivered = field(group, 'entries-read'), field(group, 'last-delivered-id')
local deleted, last = field(stream, 'max-deleted-entry-id'), field(stream, 'last-generated-id')
local first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]

local count, id = 0, delivered
-- Redis knows the number only while nothing but the oldest entries is missing: all there are must be unread.
if type(read) == 'number' and above(last, delivered) and (not first or above(first[1], delivered)) then
  count = field(stream, 'entries-added') - read - redis.call('XLEN', KEYS[1])
  id = last
end
local before = redis.call('HGET', KEYS[2], 'before') or '0-0'
if deleted and above(deleted, delivered) and above(deleted, before) then
  count = math.max(count, 1)
  id = deleted
end
if count <= 0 then return {0} end
local told = delivered .. ' ' .. count .. ' ' .. id
if redis.call('HGET', KEYS[2], 'told') == told then return {0} end
return {count, id, delivered, told}

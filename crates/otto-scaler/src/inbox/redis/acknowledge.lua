-- Acknowledges entries that are settled without a change of a record, and notes up to which id all is settled.
--
-- KEYS: highest applied id, event stream
-- ARGV: group, id up to which all is settled or '', then the entry ids
local function above(a, b)
  local am, as = string.match(a, '^(%d+)-(%d+)$')
  local bm, bs = string.match(b, '^(%d+)-(%d+)$')
  if not bm then return true end
  if am ~= bm then return #am > #bm or (#am == #bm and am > bm) end
  return #as > #bs or (#as == #bs and as > bs)
end
if ARGV[2] ~= '' and above(ARGV[2], redis.call('GET', KEYS[1]) or '') then
  redis.call('SET', KEYS[1], ARGV[2])
end
for i = 3, #ARGV do
  redis.pcall('XACK', KEYS[2], ARGV[1], ARGV[i])
end
return 'OK'

-- Makes sure that the consumer group exists, and begins where nothing is missed and nothing is done twice.
--
-- KEYS: event stream, highest applied id
-- ARGV: group, where a first start begins ('0', '$', an id, or 'auto'), with 'auto': oldest id that may be read ('MS-0')
-- Answers {what was done, the id after which it reads, entries skipped}.
--   exists     it was there
--   first      created for the first time
--   recreated  it was lost: created again from the highest applied id
--   replaced   the stream was lost and has new entries with lower ids: created from 0
local stream, highest, group, start, oldest = KEYS[1], KEYS[2], ARGV[1], ARGV[2], ARGV[3]

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

local exists = redis.call('EXISTS', stream) == 1
local last = '0-0'
if exists then
  for _, found in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
    if field(found, 'name') == group then
      return {'exists', field(found, 'last-delivered-id'), 0}
    end
  end
  last = field(redis.call('XINFO', 'STREAM', stream), 'last-generated-id')
end

local applied = redis.call('GET', highest)
if applied then
  if exists and redis.call('XLEN', stream) > 0 and above(applied, last) then
    redis.call('XGROUP', 'CREATE', stream, group, '0-0')
    redis.call('SET', highest, '0-0')
    return {'replaced', '0-0', 0}
  end
  redis.call('XGROUP', 'CREATE', stream, group, applied, 'MKSTREAM')
  if above(applied, last) then
    -- An empty stream: new ids must not be lower than those which were applied, even if the clock says so.
    redis.call('XSETID', stream, applied)
  end
  return {'recreated', applied, 0}
end

local skipped = 0
if start == 'auto' then
  local first = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
  start = '0'
  if first and above(oldest, first[1]) then start = '$' end
end
if start == '$' then
  skipped = redis.call('XLEN', stream)
  start = last
elseif start == '0' then
  start = '0-0'
end
redis.call('XGROUP', 'CREATE', stream, group, start, 'MKSTREAM')
redis.call('SET', highest, start)
return {'first', start, skipped}

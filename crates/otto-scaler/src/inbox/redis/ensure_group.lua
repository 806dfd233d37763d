-- Makes sure that the consumer group exists, and begins where nothing is missed and nothing is done twice.
--
-- KEYS: event stream, highest applied id, what was told of entries deleted unread
-- ARGV: group, where a first start begins ('0', '$', an id, or 'auto'), with 'auto': oldest id that may be read ('MS-0')
-- Answers {what was done, the id after which it reads, entries skipped}.
--   exists     it was there
--   first      created for the first time
--   recreated  it was lost: created again from the highest applied id
--   replaced   the stream was lost and has new entries with lower ids: created from 0
local stream, highest, unread = KEYS[1], KEYS[2], KEYS[3]
local group, start, oldest = ARGV[1], ARGV[2], ARGV[3]

local exists = redis.call('EXISTS', stream) == 1
local last, deleted = '0-0', '0-0'
if exists then
  for _, found in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
    if field(found, 'name') == group then
      return {'exists', field(found, 'last-delivered-id'), 0}
    end
  end
  local info = redis.call('XINFO', 'STREAM', stream)
  last, deleted = field(info, 'last-generated-id'), field(info, 'max-deleted-entry-id') or deleted
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
-- What was deleted before the first start was never meant for this group.
redis.call('HSET', unread, 'before', deleted)
return {'first', start, skipped}

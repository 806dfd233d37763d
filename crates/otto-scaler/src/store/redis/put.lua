-- Writes a task's record, marks a stream entry as applied and acknowledges it: all or nothing.
-- An entry that was applied before is only acknowledged. A repeated call (its answer was lost) answers as the first did.
--
-- KEYS: record, live tasks, ended tasks, highest applied id, event stream, owner, changes
-- ARGV: task id, version expected, version new, record as JSON, created at, ended at or '', time to live in ms or '0',
--       group, entry id or '', id up to which all is settled or '', id of the scaler or '', how many changes are kept for
--       the leader ('0': the writer is the leader)
-- Answers 'written', 'applied' (before), 'conflict' or 'owned NAME' (by another scaler).
local record, live, ended, highest, stream = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local task, expected, version, json = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local created_at, ended_at, ttl, group, entry, settled = ARGV[5], ARGV[6], ARGV[7], ARGV[8], ARGV[9], ARGV[10]

local owner, owner_name = string.match(redis.call('GET', KEYS[6]) or '', '^(%S+) (.*)$')
if ARGV[11] ~= '' and owner and owner ~= ARGV[11] then return 'owned ' .. owner_name end

local function acknowledge()
  if entry == '' then return end
  mark(highest, settled)
  -- The stream or its group may be gone; what was applied stays applied.
  redis.pcall('XACK', stream, group, entry)
end

local stored = redis.call('HMGET', record, 'version', 'record', 'entries')
local stored_version, entries = stored[1] or '0', stored[3] or ''
if entry ~= '' and string.find(' ' .. entries .. ' ', ' ' .. entry .. ' ', 1, true) then
  acknowledge()
  if stored_version == version then return 'applied' end
  return 'conflict'
end
if stored_version ~= expected then
  if stored_version == version and stored[2] == json then
    acknowledge()
    return 'applied'
  end
  return 'conflict'
end

if entry ~= '' then
  entries = entries == '' and entry or entries .. ' ' .. entry
  -- Room for some 100 ids; the oldest go first.
  while #entries > 2560 do
    entries = string.match(entries, '^%S+ (.*)$') or ''
  end
end
-- First: told without being written, the leader reads in vain; written without being told, it would not know.
if ARGV[12] ~= '0' then redis.call('XADD', KEYS[7], 'MAXLEN', '~', ARGV[12], '*', 'task', task) end
redis.call('HSET', record, 'format', '1', 'version', version, 'record', json, 'entries', entries)
if ended_at == '' then
  redis.call('ZADD', live, created_at, task)
  redis.call('ZREM', ended, task)
  redis.call('PERSIST', record)
else
  redis.call('ZADD', ended, ended_at, task)
  redis.call('ZREM', live, task)
  if ttl == '0' then
    redis.call('PERSIST', record)
  else
    redis.call('PEXPIRE', record, ttl)
  end
end
acknowledge()
return 'written'

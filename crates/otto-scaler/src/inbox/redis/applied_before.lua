-- Acknowledges an entry if its task's record says that it was applied before.
--
-- KEYS: record, event stream
-- ARGV: group, entry id
-- Answers 1 if so.
local entries = redis.call('HGET', KEYS[1], 'entries') or ''
if not string.find(' ' .. entries .. ' ', ' ' .. ARGV[2] .. ' ', 1, true) then return 0 end
redis.pcall('XACK', KEYS[2], ARGV[1], ARGV[2])
return 1

-- Removes a record whose version is still the one given; one that is gone is removed from the indexes.
--
-- KEYS: record, live tasks, ended tasks
-- ARGV: task id, version ('0': only if there is no record)
-- Answers 'removed', 'absent' or 'conflict'.
local version = redis.call('HGET', KEYS[1], 'version')
if version and version ~= ARGV[2] then return 'conflict' end
redis.call('DEL', KEYS[1])
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('ZREM', KEYS[3], ARGV[1])
return version and 'removed' or 'absent'

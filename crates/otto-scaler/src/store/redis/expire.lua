-- Removes records that ended before a time, if that is still so.
--
-- KEYS: ended tasks, then the records
-- ARGV: before (ms), then the task ids in the order of their records
-- Answers how many.
local removed = 0
for i = 2, #KEYS do
  local ended_at = redis.call('ZSCORE', KEYS[1], ARGV[i])
  if ended_at and tonumber(ended_at) < tonumber(ARGV[1]) then
    redis.call('DEL', KEYS[i])
    redis.call('ZREM', KEYS[1], ARGV[i])
    removed = removed + 1
  end
end
return removed

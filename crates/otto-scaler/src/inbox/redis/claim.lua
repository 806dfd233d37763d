-- Claims pending entries of all consumers, and notes those that were deleted before they were settled, so that they are
-- reported even if the answer is lost: XAUTOCLAIM forgets them as it tells them.
--
-- KEYS: event stream, lost entries
-- ARGV: group, consumer, least idle time in ms, cursor, count
-- Answers {next cursor, entries}.
local answer = redis.call('XAUTOCLAIM', KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4], 'COUNT', ARGV[5])
for _, id in ipairs(answer[3]) do
  redis.call('ZADD', KEYS[2], string.match(id, '^%d+'), id)
end
return {answer[1], answer[2]}

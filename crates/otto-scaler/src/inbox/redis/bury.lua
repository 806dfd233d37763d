-- Adds a dead letter, once per entry.
--
-- KEYS: dead-letter stream, the entry ids it holds
-- ARGV: most dead letters, entry id, time in ms, then names and values
-- Answers 1 if it was new.
if redis.call('ZADD', KEYS[2], 'NX', ARGV[3], ARGV[2]) == 0 then return 0 end
redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', unpack(ARGV, 4))
redis.call('ZREMRANGEBYRANK', KEYS[2], 0, -2 * tonumber(ARGV[1]) - 1)
return 1

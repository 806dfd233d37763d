-- Adds a dead letter, once per entry. The letter first: a script that fails half-way is not undone, and an id that is
-- noted without its letter would be an event that vanished.
--
-- KEYS: dead-letter stream, the entry ids it holds
-- ARGV: most dead letters, entry id (or another name of what is buried), time in ms, then names and values
-- Answers 1 if it was new.
if redis.call('ZSCORE', KEYS[2], ARGV[2]) then return 0 end
redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', unpack(ARGV, 4))
redis.call('ZADD', KEYS[2], ARGV[3], ARGV[2])
redis.call('ZREMRANGEBYRANK', KEYS[2], 0, -2 * tonumber(ARGV[1]) - 1)
return 1

-- Frees the stream, if it is the scaler's.
--
-- KEYS: owner
-- ARGV: id of the scaler
local id = string.match(redis.call('GET', KEYS[1]) or '', '^(%S+) ')
if id == ARGV[1] then redis.call('DEL', KEYS[1]) end
return 'OK'

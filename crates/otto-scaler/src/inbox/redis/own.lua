-- Takes the stream for a scaler, or keeps it, unless another one has it.
--
-- KEYS: owner
-- ARGV: id of the scaler, its name, ms until the stream is free if it is not kept
-- Answers the name of the other, or nil.
local id, name = string.match(redis.call('GET', KEYS[1]) or '', '^(%S+) (.*)$')
if id and id ~= ARGV[1] then return name end
redis.call('SET', KEYS[1], ARGV[1] .. ' ' .. ARGV[2], 'PX', ARGV[3])
return false

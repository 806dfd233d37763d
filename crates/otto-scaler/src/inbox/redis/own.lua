-- Takes the stream for a scaler, or keeps it, unless another one has it. A leader that was elected by other means takes it
-- from an earlier one: its turn has a higher number.
--
-- KEYS: owner, highest turn that had it
-- ARGV: id of the scaler, its name, ms until the stream is free if it is not kept, number of its turn or ''
-- Answers the name of the other, or nil.
local id, name = string.match(redis.call('GET', KEYS[1]) or '', '^(%S+) (.*)$')
local turn, highest = tonumber(ARGV[4]), tonumber(redis.call('GET', KEYS[2]) or '0')
local later = turn and turn > highest
if id and id ~= ARGV[1] and not later then return name end
if later then redis.call('SET', KEYS[2], ARGV[4]) end
redis.call('SET', KEYS[1], ARGV[1] .. ' ' .. ARGV[2], 'PX', ARGV[3])
return false

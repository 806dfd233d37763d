-- Takes the stream for a scaler, or keeps it, unless another one has it. A leader that was elected by other means takes it
-- from a leader that was elected before it: its turn has a higher number.
--
-- KEYS: owner, number of the last turn that had it (there is none if one has it that was not elected)
-- ARGV: id of the scaler, its name, ms until the stream is free if it is not kept, number of its turn or ''
-- Answers the name of the other, or nil.
local id, name = string.match(redis.call('GET', KEYS[1]) or '', '^(%S+) (.*)$')
local turn, last = tonumber(ARGV[4]), tonumber(redis.call('GET', KEYS[2]) or '')
if id and id ~= ARGV[1] and not (turn and last and turn > last) then return name end
if not turn then
  redis.call('DEL', KEYS[2])
elseif turn ~= last then
  redis.call('SET', KEYS[2], ARGV[4])
end
redis.call('SET', KEYS[1], ARGV[1] .. ' ' .. ARGV[2], 'PX', ARGV[3])
return false

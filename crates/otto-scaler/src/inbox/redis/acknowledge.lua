-- Acknowledges entries that are settled without a change of a record, and notes up to which id all is settled.
--
-- KEYS: highest applied id, event stream
-- ARGV: group, id up to which all is settled or '', then the entry ids
mark(KEYS[1], ARGV[2])
for i = 3, #ARGV do
  redis.pcall('XACK', KEYS[2], ARGV[1], ARGV[i])
end
return 'OK'

//! Entries of a stream as Redis answers them.

use redis::{ErrorKind, FromRedisValue, ParsingError, RedisError, RedisResult, Value};

use crate::event::parse::Fields;
use crate::task::EntryId;

/// One entry, its fields as they came.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    pub(crate) id: EntryId,
    pub(crate) fields: Fields,
}

impl Entry {
    /// Bytes of names and values.
    pub(crate) fn bytes(&self) -> usize {
        self.fields.iter().map(|(name, value)| name.len() + value.len()).sum()
    }
}

/// A page of entries: `[[id, [name, value, …]], …]`.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Entries(pub(crate) Vec<Entry>);

impl FromRedisValue for Entries {
    fn from_redis_value(value: Value) -> Result<Self, ParsingError> {
        let mut entries = Vec::new();
        for item in array(value)? {
            let mut parts = array(item)?.into_iter();
            let (Some(id), Some(fields)) = (parts.next(), parts.next()) else {
                return Err("an entry without id or fields".into());
            };
            let id = String::from_redis_value(id)?.parse::<EntryId>()?;
            // Deleted since it was delivered, as Redis before 7.0 shows it.
            let fields = if fields == Value::Nil { Vec::new() } else { array(fields)? };
            let mut pairs = Vec::with_capacity(fields.len() / 2);
            let mut fields = fields.into_iter();
            while let (Some(name), Some(value)) = (fields.next(), fields.next()) {
                pairs.push((bytes(name)?, bytes(value)?));
            }
            entries.push(Entry { id, fields: pairs });
        }
        Ok(Self(entries))
    }
}

/// Answer of XREADGROUP for one stream: nil, or `[[stream, entries]]`.
pub(crate) fn read_reply(value: Value) -> RedisResult<Vec<Entry>> {
    let malformed = |detail: &str| RedisError::from((ErrorKind::UnexpectedReturnType, "XREADGROUP", detail.to_owned()));
    match value {
        Value::Nil => Ok(Vec::new()),
        Value::Array(mut streams) => match streams.pop() {
            Some(Value::Array(mut stream)) if stream.len() == 2 && streams.is_empty() => {
                let entries = stream.pop().unwrap_or_default();
                Entries::from_redis_value(entries).map(|entries| entries.0).map_err(|e| malformed(&e.to_string()))
            }
            _ => Err(malformed("not one stream")),
        },
        other => Err(malformed(&format!("{other:?}"))),
    }
}

fn array(value: Value) -> Result<Vec<Value>, ParsingError> {
    match value {
        Value::Array(items) => Ok(items),
        other => Err(format!("expected an array, got {other:?}").into()),
    }
}

fn bytes(value: Value) -> Result<Vec<u8>, ParsingError> {
    match value {
        Value::BulkString(bytes) => Ok(bytes),
        Value::SimpleString(text) => Ok(text.into_bytes()),
        Value::Int(number) => Ok(number.to_string().into_bytes()),
        other => Err(format!("expected a string, got {other:?}").into()),
    }
}

//! Names of streams and keys. All keys of the task store have the event stream's slot, so that one script may touch the
//! stream, a record and the marker together, on a Redis Cluster too.

use crate::task::EntryId;

/// Names derived from the event stream's.
#[derive(Clone, Debug)]
pub(crate) struct Keys {
    /// `otto:scale:events`
    pub(crate) stream: String,
    pub(crate) group: String,
    /// `{otto:scale:events}`, or the stream's name if that has a hash tag of its own.
    prefix: String,
    /// `otto:scale:events:dead`
    pub(crate) dead: String,
    // Those of every write.
    live: String,
    ended: String,
    applied: String,
    owner: String,
    changes: String,
}

impl Keys {
    /// # Errors
    /// A name that cannot be used, naming its flag.
    pub(crate) fn new(stream: &str, group: &str) -> Result<Self, String> {
        for (flag, name) in [("--event-stream", stream), ("--consumer-group", group)] {
            if name.is_empty() || name.len() > 512 || name.chars().any(|c| c.is_control() || c.is_whitespace()) {
                return Err(format!("{flag}: `{}` (accepted: 1 to 512 bytes without spaces)", name.escape_debug()));
            }
        }
        // https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/#hash-tags
        let tag = stream.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map(|(tag, _)| tag);
        let prefix = match tag {
            Some(tag) if !tag.is_empty() => stream.to_owned(),
            None if !stream.contains(['{', '}']) => format!("{{{stream}}}"),
            _ => {
                return Err(format!(
                    "--event-stream: `{stream}` has braces that are no hash tag (accepted: a name without braces, or with \
                     one tag like {{jobs}}:events)"
                ));
            }
        };
        let key = |name: &str| format!("{prefix}:{name}");
        Ok(Self {
            stream: stream.to_owned(),
            group: group.to_owned(),
            dead: format!("{stream}:dead"),
            live: key("tasks:live"),
            ended: key("tasks:ended"),
            applied: key("applied"),
            owner: key("owner"),
            changes: key("changes"),
            prefix,
        })
    }

    /// Record of a task.
    pub(crate) fn record(&self, task_id: &str) -> String {
        format!("{}:task:{task_id}", self.prefix)
    }

    /// Sorted set: tasks that have not ended, by their creation.
    pub(crate) fn live(&self) -> &str {
        &self.live
    }

    /// Sorted set: tasks that have ended, by their end.
    pub(crate) fn ended(&self) -> &str {
        &self.ended
    }

    /// Highest id up to which every entry is settled.
    pub(crate) fn applied(&self) -> &str {
        &self.applied
    }

    /// Sorted set: entries that were deleted before they were settled, until that is reported.
    pub(crate) fn lost(&self) -> String {
        format!("{}:lost", self.prefix)
    }

    /// Hash: what was last reported of entries that were deleted before they were read.
    pub(crate) fn lost_unread(&self) -> String {
        format!("{}:lost:unread", self.prefix)
    }

    /// The scaler which reads the stream: its id and its name.
    pub(crate) fn owner(&self) -> &str {
        &self.owner
    }

    /// Number of the last turn of leadership that had the stream.
    pub(crate) fn term(&self) -> String {
        format!("{}:term", self.prefix)
    }

    /// Stream: tasks that others than the leader changed, for the leader.
    pub(crate) fn changes(&self) -> &str {
        &self.changes
    }

    /// Written by every ping.
    pub(crate) fn ping(&self) -> String {
        format!("{}:ping", self.prefix)
    }

    /// Sorted set beside the dead letters, in their slot: entry ids that are among them.
    pub(crate) fn dead_ids(&self) -> String {
        if self.prefix == self.stream { format!("{}:ids", self.dead) } else { format!("{{{}}}:ids", self.dead) }
    }
}

/// Where a consumer group begins that is created for the first time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum EventStart {
    /// At the end where the stream has entries older than the retention of records, else at the beginning.
    #[default]
    Auto,
    Beginning,
    End,
    /// After this entry.
    After(EntryId),
}

impl std::str::FromStr for EventStart {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let after = || {
            let id = if text.contains('-') { text.parse() } else { format!("{text}-0").parse() };
            id.map(EventStart::After)
        };
        match text {
            "auto" => Ok(Self::Auto),
            "0" => Ok(Self::Beginning),
            "$" => Ok(Self::End),
            _ => after().map_err(|_| format!("`{text}` (accepted: 0, $, an entry's id like 1700000000000-0, auto)")),
        }
    }
}

impl std::fmt::Display for EventStart {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Beginning => f.write_str("0"),
            Self::End => f.write_str("$"),
            Self::After(id) => id.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_share_the_streams_slot() {
        let keys = Keys::new("otto:scale:events", "ottoscaler").unwrap();
        assert_eq!(keys.record("a}b"), "{otto:scale:events}:task:a}b");
        assert_eq!(keys.applied(), "{otto:scale:events}:applied");
        assert_eq!(
            (keys.dead.as_str(), keys.dead_ids().as_str()),
            ("otto:scale:events:dead", "{otto:scale:events:dead}:ids")
        );
        let tagged = Keys::new("{jobs}:events", "g").unwrap();
        assert_eq!(tagged.record("t"), "{jobs}:events:task:t");
        assert_eq!(tagged.dead_ids(), "{jobs}:events:dead:ids");
        for bad in ["", "a b", "{}x", "a}b", "{a"] {
            assert!(Keys::new(bad, "g").unwrap_err().contains("--event-stream"), "{bad}");
        }
        assert!(Keys::new("s", "").unwrap_err().contains("--consumer-group"));
    }

    #[test]
    fn event_starts() {
        assert_eq!("0".parse(), Ok(EventStart::Beginning));
        assert_eq!("$".parse(), Ok(EventStart::End));
        assert_eq!("5-1".parse(), Ok(EventStart::After(EntryId { millis: 5, sequence: 1 })));
        assert_eq!("1700000000000".parse(), Ok(EventStart::After(EntryId { millis: 1_700_000_000_000, sequence: 0 })));
        assert!("now".parse::<EventStart>().unwrap_err().contains("accepted: 0, $"));
    }
}

//! What other replicas than the leader wrote, for the leader: the stream `{S}:changes`, one entry per write, added by the
//! script that writes the record ([`crate::store::redis`]).
//!
//! The stream is short, and may be lost with Redis. The reader counts what it read: if entries are missing, it has all
//! records read again.

use std::convert::Infallible;
use std::time::Duration;

use otto_service::client::Backoff;
use redis::aio::MultiplexedConnection;
use redis::{ErrorKind, RedisResult, ServerErrorKind, Value};
use tokio_util::sync::CancellationToken;

use super::entry::{self, Entry};
use super::link::Link;
use crate::controller::Handle;
use crate::task::EntryId;

/// The server's side of a read waits so long.
const BLOCK: Duration = Duration::from_secs(if cfg!(test) { 2 } else { 5 });
/// Entries of one read.
const READ: usize = 1_000;

/// The reader.
#[derive(Debug)]
pub(crate) struct Changes {
    link: Link,
    stream: String,
    /// Up to here everything is known. `None`: nothing is known yet.
    position: Option<Position>,
}

/// A place in the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Position {
    /// Last entry.
    id: EntryId,
    /// Entries that were ever added, up to it.
    count: u64,
}

impl Changes {
    pub(super) fn new(link: Link, stream: String) -> Self {
        Self { link, stream, position: None }
    }

    /// Begins here: to be called before all records are read. If it fails, they are read once more later.
    pub(crate) async fn begin(&mut self) {
        match self.end().await {
            Ok(end) => self.position = Some(end),
            Err(error) => tracing::debug!(error = self.link.describe(&error), "changes by others are read later"),
        }
    }

    /// Tells the controller of every change, until `stop`.
    pub(crate) async fn run(mut self, handle: Handle, stop: CancellationToken) {
        let mut backoff = Backoff::new(Duration::from_millis(20), Duration::from_secs(2));
        let mut troubled = false;
        while let Some(Err(error)) = stop.run_until_cancelled(self.follow(&handle, &mut troubled)).await {
            if !std::mem::replace(&mut troubled, true) {
                let error = self.link.describe(&error);
                tracing::warn!(stream = self.stream, error, "changes by other replicas are not read; trying again");
            }
            if stop.run_until_cancelled(tokio::time::sleep(backoff.next())).await.is_none() {
                return;
            }
        }
    }

    async fn follow(&mut self, handle: &Handle, troubled: &mut bool) -> RedisResult<Infallible> {
        let mut reader = self.link.dedicated(BLOCK).await?;
        // There is more than was read.
        let mut behind = false;
        loop {
            let position = match self.position {
                Some(position) => position,
                None => {
                    // Before the records are read: what is written from now on is read again.
                    let end = self.end().await?;
                    handle.reload().await;
                    *self.position.insert(end)
                }
            };
            let entries = self.read(&mut reader, position, !behind).await?;
            if std::mem::take(troubled) {
                tracing::info!(stream = self.stream, "changes by other replicas are read again");
            }
            let read = Position {
                id: entries.last().map_or(position.id, |last| last.id),
                count: position.count + u64::try_from(entries.len()).unwrap_or_default(),
            };
            self.position = Some(read);
            let in_vain = behind && entries.is_empty();
            handle.changed(entries.iter().filter_map(task).collect()).await;
            let end = self.end().await?;
            behind = end.id > read.id;
            if in_vain || (!behind && end != read) {
                tracing::warn!(stream = self.stream, "changes by other replicas were lost; all records are read again");
                self.position = None;
                behind = false;
            }
        }
    }

    /// What comes after a place; waits for it if it may.
    async fn read(
        &self,
        reader: &mut MultiplexedConnection,
        position: Position,
        wait: bool,
    ) -> RedisResult<Vec<Entry>> {
        let mut command = redis::cmd("XREAD");
        command.arg("COUNT").arg(READ);
        if wait {
            command.arg("BLOCK").arg(u64::try_from(BLOCK.as_millis()).unwrap_or(u64::MAX));
        }
        command.arg("STREAMS").arg(&self.stream).arg(position.id.to_string());
        entry::read_reply(command.query_async::<Value>(reader).await?)
    }

    /// Where the stream ends.
    async fn end(&self) -> RedisResult<Position> {
        let mut command = redis::cmd("XINFO");
        let info = command.arg("STREAM").arg(&self.stream).query_async::<Value>(&mut self.link.clone()).await;
        let info = match info {
            Ok(info) => info,
            // There is none yet.
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::ResponseError) => {
                return Ok(Position { id: EntryId { millis: 0, sequence: 0 }, count: 0 });
            }
            Err(error) => return Err(error),
        };
        let malformed = || redis::RedisError::from((ErrorKind::UnexpectedReturnType, "XINFO STREAM"));
        let Value::Array(fields) = info else { return Err(malformed()) };
        let field = |name: &str| {
            fields.chunks_exact(2).find_map(|pair| match pair {
                [found, value] if redis::from_redis_value_ref::<String>(found).is_ok_and(|found| found == name) => {
                    Some(value)
                }
                _ => None,
            })
        };
        let id = field("last-generated-id").and_then(|id| redis::from_redis_value_ref::<String>(id).ok()?.parse().ok());
        let count = field("entries-added").and_then(|count| redis::from_redis_value_ref::<u64>(count).ok());
        Ok(Position { id: id.ok_or_else(malformed)?, count: count.ok_or_else(malformed)? })
    }
}

fn task(entry: &Entry) -> Option<String> {
    let (_, value) = entry.fields.iter().find(|(name, _)| name == b"task")?;
    String::from_utf8(value.clone()).ok()
}

//! One scaler per event stream: it holds a key that expires unless it is refreshed. Others stand by, and take over when
//! the key is released or has expired.
//!
//! A scaler that was frozen for longer than that finds the key another's: its writes of records are refused by the same
//! script that would write them.
//!
//! Where a Lease decides who leads, its holder takes the key from the holder before it, once: each turn of leadership has a
//! number that only rises, and the key's goes by it. So the key is a fence, not a second election.

use std::convert::Infallible;
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use anyhow::Context;
use redis::Script;
use uuid::Uuid;

use super::keys::Keys;
use super::link::Link;
use crate::leadership::Leadership;
use crate::store::StoreError;

static OWN: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("own.lua")));
static DISOWN: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("disown.lua")));

/// An owner that is silent for so long has lost the stream.
const EXPIRY: Duration = Duration::from_secs(15);
/// Between refreshes.
const REFRESH: Duration = if cfg!(test) { Duration::from_millis(100) } else { Duration::from_secs(5) };
/// Releasing takes no longer: the key expires anyway.
const RELEASE: Duration = Duration::from_secs(2);
/// Nor this, where the next leader waits for it, and takes the key by its number if need be.
const RELEASE_ELECTED: Duration = Duration::from_millis(500);
/// In the data directory.
const FILE: &str = "scaler.id";

/// Tells one scaler from another.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    /// Without spaces.
    pub(crate) id: String,
    /// For people: host and data directory.
    pub(crate) name: String,
}

/// A turn of leadership that was won elsewhere.
#[derive(Clone, Debug)]
pub(crate) struct Turn {
    /// Higher than that of every turn before; at most 2^53. 0: it has none, and waits until the stream is free.
    pub(crate) number: u64,
    pub(crate) leadership: Leadership,
}

impl Identity {
    /// Of the scaler with this data directory: kept there, so that it is the same after a restart. The directory must be
    /// locked by the caller.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub(crate) fn of(data_dir: &Path) -> anyhow::Result<Self> {
        let path = data_dir.join(FILE);
        let kept = match std::fs::read_to_string(&path) {
            Ok(text) => text.trim().parse::<Uuid>().ok(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(error).with_context(|| format!("cannot read {} (--data-dir)", path.display())),
        };
        let id = match kept {
            Some(id) => id,
            None => {
                let id = Uuid::new_v4();
                keep(&path, id).with_context(|| format!("cannot write {} (--data-dir)", path.display()))?;
                id
            }
        };
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let host = if host.trim().is_empty() { "unknown host" } else { host.trim() };
        let data_dir = std::fs::canonicalize(data_dir).unwrap_or_else(|_| data_dir.to_owned());
        Ok(Self { id: id.to_string(), name: format!("{host}:{}", data_dir.display()) })
    }
}

fn keep(path: &Path, id: Uuid) -> std::io::Result<()> {
    let temporary = path.with_extension("id.tmp");
    let mut file = std::fs::File::create(&temporary)?;
    writeln!(file, "{id}")?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)
}

/// Why something is not done: another scaler has the stream.
#[derive(Debug, thiserror::Error)]
#[error("another otto-scaler ({0}) owns this stream")]
pub(crate) struct Owned(pub(crate) String);

/// Why the stream is not had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotHad {
    #[error(transparent)]
    Owned(#[from] Owned),
    #[error("this scaler does not lead (any more)")]
    NotLeading,
    #[error(transparent)]
    Redis(#[from] redis::RedisError),
}

/// Whose the stream is. Without an identity it is everybody's.
#[derive(Clone, Debug)]
pub(crate) struct Owner {
    pub(super) link: Link,
    pub(super) keys: Arc<Keys>,
    pub(super) me: Option<Arc<Identity>>,
    /// `None`: who takes the stream first has it.
    pub(super) turn: Option<Turn>,
}

impl Owner {
    /// What a script compares before it writes; empty: nothing is compared.
    pub(crate) fn id(&self) -> &str {
        self.me.as_ref().map_or("", |me| &me.id)
    }

    /// Takes the stream or keeps it.
    pub(crate) async fn claim(&self) -> Result<(), NotHad> {
        let Some(me) = &self.me else { return Ok(()) };
        let number = match &self.turn {
            Some(turn) if turn.leadership.left().is_none() => return Err(NotHad::NotLeading),
            Some(turn) if turn.number > 0 => turn.number.to_string(),
            _ => String::new(),
        };
        let other: Option<String> = OWN
            .key(self.keys.owner())
            .key(self.keys.term())
            .arg(&me.id)
            .arg(&me.name)
            .arg(u64::try_from(EXPIRY.as_millis()).unwrap_or(u64::MAX))
            .arg(number)
            .invoke_async(&mut self.link.clone())
            .await?;
        other.map_or(Ok(()), |name| Err(Owned(name).into()))
    }

    /// [`Owner::claim`] for the task store.
    pub(crate) async fn allow(&self) -> Result<(), StoreError> {
        self.claim().await.map_err(|error| match error {
            error @ (NotHad::Owned(_) | NotHad::NotLeading) => StoreError::Unavailable(error.to_string()),
            NotHad::Redis(error) => StoreError::Unavailable(self.link.describe(&error)),
        })
    }

    /// Keeps the stream until that fails.
    pub(super) async fn keep(&self) -> Result<Infallible, NotHad> {
        loop {
            tokio::time::sleep(REFRESH).await;
            self.claim().await?;
        }
    }

    /// Frees the stream for others, if it can be done soon.
    pub(crate) async fn release(&self) {
        let Some(me) = &self.me else { return };
        let mut link = self.link.clone();
        let mut call = DISOWN.key(self.keys.owner());
        let within = if self.turn.is_some() { RELEASE_ELECTED } else { RELEASE };
        let released = tokio::time::timeout(within, call.arg(&me.id).invoke_async::<()>(&mut link)).await;
        let numbered = self.turn.as_ref().is_some_and(|turn| turn.number > 0);
        if !numbered && !matches!(released, Ok(Ok(()))) {
            tracing::warn!(
                stream = self.keys.stream,
                "the event stream could not be released: another scaler waits for up to {EXPIRY:?}"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_directory_has_one_identity() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let first = Identity::of(one.path()).unwrap();
        assert_eq!(Identity::of(one.path()).unwrap().id, first.id);
        assert_ne!(Identity::of(other.path()).unwrap().id, first.id);
        assert!(first.name.contains(&one.path().canonicalize().unwrap().display().to_string()), "{}", first.name);
        // A torn write of an old version, or a hand, left nonsense.
        std::fs::write(one.path().join(FILE), "a b").unwrap();
        assert_ne!(Identity::of(one.path()).unwrap().id, first.id);
    }
}

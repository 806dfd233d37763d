//! Everything of one kind with one selector, kept up to date: a list, then a watch from there, for ever.
//!
//! Lists are consistent reads (no resource version is given): one that an API server answers from a cache that lags
//! behind would say that workers are gone which run. Hence not the watcher of the kube crate, which accepts any age.
//! Sources: <https://kubernetes.io/docs/reference/using-api/api-concepts/#streaming-lists> and
//! <https://kubernetes.io/docs/reference/using-api/api-concepts/#watch-bookmarks>.

use std::time::{Duration, Instant};

use bytes::BytesMut;
use http_body_util::BodyExt;
use kube::client::Body;
use kube::core::Status;
use otto_service::client::Backoff;
use rand::Rng;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use super::cluster::{Cluster, get};
use super::errors::{Asked, Failure, explain};
use super::seen::SeenPod;

/// The server ends a watch after this and as much again at most: many clients do not come back at once.
const WATCH_SECONDS: u64 = 300;
/// Bookmarks come about once a minute. Without any for so long, the watch is taken up anew.
const SILENCE: Duration = Duration::from_secs(150);
/// A streaming list that says nothing for so long is given up, and what it would have told is asked for in pages.
const LIST_SILENCE: Duration = Duration::from_secs(if cfg!(test) { 3 } else { 15 });
/// Objects of one page, where lists come in pages.
const PAGE: usize = 500;
/// A watch that lived so long did well.
const DID_WELL: Duration = Duration::from_secs(5);
/// Longest line of a watch, in bytes. Objects are at most 3 MiB.
const LONGEST_LINE: usize = 16 << 20;

/// With so many changes within [`SPAN`] there is a burst,
const BURST: u32 = 20;
const SPAN: Duration = Duration::from_millis(100);
/// and what the server sends is taken every so often: many small looks cost more than what is in them.
const REST: Duration = Duration::from_millis(15);

/// What is followed.
#[derive(Clone, Debug)]
pub(super) struct Selection {
    pub(super) resource: &'static str,
    /// `labelSelector=…` or `fieldSelector=…`, encoded.
    pub(super) selector: String,
}

/// What happens to the objects.
#[derive(Debug)]
pub(super) enum Event {
    /// A list begins: what it does not hold is gone when it is complete.
    Listing,
    Listed(SeenPod),
    /// The list is complete.
    Synced,
    /// Added or changed.
    Applied(SeenPod),
    /// With its last state.
    Deleted(SeenPod),
    /// It is cut off, for the first time since all was well; this is why.
    Failing(String),
    /// It goes on.
    Well,
}

/// Why it does not go on from where it was.
enum End {
    /// The server or the network ended it; it goes on from the last version.
    Closed,
    /// What the last version was is forgotten: everything must be listed again.
    Expired,
    Failed(Failure),
    /// The server knows no streaming lists.
    NotUnderstood,
    /// A streaming list fell silent: this time. A server that is busy, or a connection that is half open, does that, too.
    Silent,
}

impl From<Failure> for End {
    fn from(failure: Failure) -> Self {
        if failure.is_expired() { Self::Expired } else { Self::Failed(failure) }
    }
}

#[derive(Deserialize)]
struct Line {
    #[serde(rename = "type")]
    kind: Kind,
    object: SeenPod,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
enum Kind {
    Added,
    Modified,
    Deleted,
    Bookmark,
}

#[derive(Deserialize)]
struct ErrorLine {
    object: Status,
}

#[derive(Deserialize)]
struct Page {
    metadata: PageMetadata,
    #[serde(default = "Vec::new")]
    items: Vec<SeenPod>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PageMetadata {
    #[serde(default)]
    resource_version: String,
    #[serde(default)]
    r#continue: String,
}

/// Follows a selection.
pub(super) struct Feed<'a, F> {
    cluster: &'a Cluster,
    selection: Selection,
    /// Called in order, one event after the other. It must not block.
    each: F,
    /// Whether the server knows streaming lists, as far as it is known.
    streaming: bool,
    page: usize,
    failing: bool,
}

impl<'a, F: FnMut(Event)> Feed<'a, F> {
    pub(super) fn new(cluster: &'a Cluster, selection: Selection, each: F) -> Self {
        Self { cluster, selection, each, streaming: true, page: PAGE, failing: false }
    }

    /// One that asks for pages of a size.
    #[cfg(test)]
    pub(super) fn in_pages_of(page: usize, cluster: &'a Cluster, selection: Selection, each: F) -> Self {
        Self { streaming: false, page, ..Self::new(cluster, selection, each) }
    }

    /// Runs until `stop`.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let _ = stop.run_until_cancelled(self.follow()).await;
    }

    /// Lists and watches, for ever. Called again, it lists again.
    pub(super) async fn follow(&mut self) {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        // From where the watch goes on. `None`: everything is listed.
        let mut version = None;
        let mut silent = false;
        loop {
            let began = Instant::now();
            let end = match &mut version {
                Some(version) => self.watch(version).await,
                None if self.streaming && !silent => self.streaming_list(&mut version).await,
                None => match self.paged_list().await {
                    Ok(listed) => {
                        silent = false;
                        version = Some(listed);
                        continue;
                    }
                    Err(end) => end,
                },
            };
            if began.elapsed() >= DID_WELL {
                backoff.reset();
            }
            match end {
                End::Closed => {}
                End::Expired => {
                    tracing::debug!(
                        resource = self.selection.resource,
                        "the watch is too old; everything is listed again"
                    );
                    version = None;
                }
                End::NotUnderstood => self.streaming = false,
                End::Silent => silent = true,
                End::Failed(failure) => {
                    // One cut is nothing to speak of.
                    if backoff.attempts() > 0 || version.is_none() {
                        self.failed(&failure, version.is_some());
                    }
                }
            }
            // The second of two ends in a row waits, whatever they were: a server that ends every watch at once is not
            // asked without a pause.
            if began.elapsed() < DID_WELL {
                tokio::time::sleep(backoff.next()).await;
            }
        }
    }

    fn failed(&mut self, failure: &Failure, synced: bool) {
        if !std::mem::replace(&mut self.failing, true) {
            let asked = Asked {
                verb: if synced { "watch" } else { "list" },
                resource: self.selection.resource,
                namespace: self.cluster.namespace(),
                url: self.cluster.url(),
            };
            (self.each)(Event::Failing(explain(failure, asked)));
        }
    }

    fn well(&mut self) {
        if std::mem::replace(&mut self.failing, false) {
            (self.each)(Event::Well);
        }
    }

    fn path(&self, query: &str) -> String {
        let Selection { resource, selector } = &self.selection;
        self.cluster.path(&format!("{resource}?{selector}{query}"))
    }

    /// List and watch in one.
    async fn streaming_list(&mut self, version: &mut Option<String>) -> End {
        let query = format!(
            "&watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&timeoutSeconds={}",
            watch_seconds()
        );
        let body = match self.cluster.stream(get(&self.path(&query))).await {
            Ok(body) => body,
            Err(failure) => return not_streamed(failure),
        };
        (self.each)(Event::Listing);
        let mut lines = Lines::new(body);
        loop {
            let line = match tokio::time::timeout(LIST_SILENCE, lines.next()).await {
                Ok(Ok(Some(line))) => line,
                Ok(Ok(None)) => return End::Closed,
                Ok(Err(failure)) => return failure.into(),
                Err(_) => return End::Silent,
            };
            let Line { kind, object } = match parse(&line) {
                Ok(line) => line,
                // Some servers say it only here.
                Err(failure) => return not_streamed(failure),
            };
            match kind {
                Kind::Added => (self.each)(Event::Listed(object)),
                // Not seen before the end of the initial events, but possible.
                Kind::Modified => (self.each)(Event::Listed(object)),
                Kind::Deleted => (self.each)(Event::Deleted(object)),
                Kind::Bookmark => {
                    let annotations = object.metadata.annotations.unwrap_or_default();
                    if annotations.get("k8s.io/initial-events-end").is_some_and(|value| value == "true") {
                        *version = object.metadata.resource_version;
                        break;
                    }
                }
            }
        }
        self.well();
        (self.each)(Event::Synced);
        match version {
            Some(version) => self.read(&mut lines, version).await,
            None => End::Failed(Failure::Lost("a streaming list ended without a resource version".to_owned())),
        }
    }

    /// Everything, in pages. Returns the resource version to go on from.
    async fn paged_list(&mut self) -> Result<String, End> {
        let mut next = String::new();
        loop {
            let first = next.is_empty();
            let query = match first {
                true => format!("&limit={}", self.page),
                false => format!("&limit={}&continue={}", self.page, encoded(&next)),
            };
            let answer = self.cluster.read(get(&self.path(&query))).await?;
            let page: Page = serde_json::from_slice(&answer.body).map_err(|error| {
                End::Failed(Failure::Lost(format!("a list of {} cannot be read: {error}", self.selection.resource)))
            })?;
            if first {
                (self.each)(Event::Listing);
            }
            for object in page.items {
                (self.each)(Event::Listed(object));
            }
            next = page.metadata.r#continue;
            if next.is_empty() {
                self.well();
                (self.each)(Event::Synced);
                return Ok(page.metadata.resource_version);
            }
        }
    }

    /// From a version on.
    async fn watch(&mut self, version: &mut String) -> End {
        let query = format!(
            "&watch=1&allowWatchBookmarks=true&resourceVersion={}&timeoutSeconds={}",
            encoded(version),
            watch_seconds()
        );
        match self.cluster.stream(get(&self.path(&query))).await {
            Ok(body) => self.read(&mut Lines::new(body), version).await,
            Err(failure) => failure.into(),
        }
    }

    async fn read(&mut self, lines: &mut Lines, version: &mut String) -> End {
        let mut pace = Pace::default();
        loop {
            if lines.has_none() && pace.is_burst() {
                tokio::time::sleep(REST).await;
            }
            let line = match tokio::time::timeout(SILENCE, lines.next()).await {
                Ok(Ok(Some(line))) => line,
                Ok(Ok(None)) | Err(_) => return End::Closed,
                Ok(Err(failure)) => return failure.into(),
            };
            let Line { kind, mut object } = match parse(&line) {
                Ok(line) => line,
                Err(failure) => return failure.into(),
            };
            if let Some(new) = object.metadata.resource_version.take() {
                *version = new;
            }
            self.well();
            pace.count();
            match kind {
                Kind::Added | Kind::Modified => (self.each)(Event::Applied(object)),
                Kind::Deleted => (self.each)(Event::Deleted(object)),
                Kind::Bookmark => {}
            }
        }
    }
}

/// How many changes came lately.
struct Pace {
    since: Instant,
    changes: u32,
    burst: bool,
}

impl Default for Pace {
    fn default() -> Self {
        Self { since: Instant::now(), changes: 0, burst: false }
    }
}

impl Pace {
    fn count(&mut self) {
        self.changes += 1;
    }

    fn is_burst(&mut self) -> bool {
        let span = self.since.elapsed();
        if span >= SPAN {
            *self = Self { burst: self.changes >= BURST && span < 2 * SPAN, ..Self::default() };
        }
        self.burst
    }
}

fn not_streamed(failure: Failure) -> End {
    if is_about_streaming(&failure) { End::NotUnderstood } else { failure.into() }
}

/// The server has no streaming lists: "sendInitialEvents is forbidden for watch unless the WatchList feature gate is
/// enabled" (422), or, with an etcd before 3.4.25 or 3.5.8, "a watch stream was requested by the client but the required
/// storage feature RequestWatchProgress is disabled" (500).
fn is_about_streaming(failure: &Failure) -> bool {
    matches!(failure.code(), Some(400 | 406 | 422)) || failure.to_string().contains("RequestWatchProgress")
}

/// Reads a line of a watch; an error that it tells is a failure.
fn parse(line: &[u8]) -> Result<Line, Failure> {
    let error = match serde_json::from_slice::<Line>(line) {
        Ok(line) => return Ok(line),
        Err(error) => error,
    };
    match serde_json::from_slice::<ErrorLine>(line) {
        Ok(ErrorLine { object }) => Err(Failure::Answer { status: Box::new(object), retry_after: None }),
        Err(_) => Err(Failure::Lost(format!("a line of a watch cannot be read: {error}"))),
    }
}

fn watch_seconds() -> u64 {
    rand::rng().random_range(WATCH_SECONDS..2 * WATCH_SECONDS)
}

/// Percent-encoded as a value of a query.
pub(super) fn encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

/// Bytes, line by line.
#[derive(Default)]
struct Splitter {
    buffer: BytesMut,
    /// Bytes of the buffer that hold no line end.
    looked: usize,
}

impl Splitter {
    fn push(&mut self, data: &[u8]) {
        self.buffer.extend_from_slice(data);
    }

    fn has_line(&self) -> bool {
        memchr::memchr(b'\n', &self.buffer[self.looked..]).is_some()
    }

    /// The next complete line, with its end.
    fn next(&mut self) -> Option<BytesMut> {
        let Some(at) = memchr::memchr(b'\n', &self.buffer[self.looked..]) else {
            self.looked = self.buffer.len();
            return None;
        };
        let line = self.buffer.split_to(self.looked + at + 1);
        self.looked = 0;
        Some(line)
    }
}

/// The lines of a body.
struct Lines {
    body: Body,
    splitter: Splitter,
}

impl Lines {
    fn new(body: Body) -> Self {
        Self { body, splitter: Splitter::default() }
    }

    /// Whether the next line is still to be received.
    fn has_none(&self) -> bool {
        !self.splitter.has_line()
    }

    /// The next line. `None`: the body has ended (an incomplete line is worth nothing). Cancel-safe.
    async fn next(&mut self) -> Result<Option<BytesMut>, Failure> {
        loop {
            if let Some(line) = self.splitter.next() {
                return Ok(Some(line));
            }
            if self.splitter.looked > LONGEST_LINE {
                return Err(Failure::Lost("a line of a watch is too long".to_owned()));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(error)) => return Err(Failure::cut(&error)),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.splitter.push(&data);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;

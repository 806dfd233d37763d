//! The background thread: takes sealed segments into the index (merging their small blocks first), and removes what
//! retention says. It never waits for the writer, and the writer waits for it only when it is far behind.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::age::{AgeClock, nanos};
use crate::error::{Health, StoreError};
use crate::index::{Expiry, IndexError, Meta, SegmentRow};
use crate::layer::Layer;
use crate::merge;
use crate::queue::Job;
use crate::segment::file_name;
use crate::shared::{Shared, add, get};

/// How often retention looks at the clock.
const TICK: Duration = Duration::from_secs(60);
/// How often it looks for the writer's answer.
const ANSWER: Duration = Duration::from_millis(5);
/// How long the writer may take to seal a segment; then it is asked again at the next look.
const PATIENCE: Duration = Duration::from_secs(5);
/// Memory that an idle store may keep for its active segment, bytes.
const IDLE_WEIGHT: usize = 2 << 20;
/// What a write of the index may need besides the rows, bytes.
const INDEX_SPACE: u64 = 1 << 20;
/// After the index could not be written.
const RETRY: Duration = Duration::from_secs(1);

pub(crate) struct Sealer {
    shared: Arc<Shared>,
    /// Segments in the index.
    sealed: BTreeMap<u64, SegmentRow>,
    expiring: Option<Expiring>,
    /// The segment that the writer was told to seal.
    told_to_seal: Option<(u64, Instant)>,
    waiting: Vec<oneshot::Sender<Result<(), StoreError>>>,
    ages: AgeClock,
    looked_at_clock: Option<Instant>,
    index_failed: Option<Instant>,
    /// Commits at the last look at the clock.
    commits: u64,
}

struct Expiring {
    expiry: Expiry,
    answer: oneshot::Receiver<Result<(), StoreError>>,
}

/// What retention does next.
enum Due {
    Nothing,
    /// The writer has to answer first.
    Wait,
    Expire(u64),
    Seal(u64),
}

impl Sealer {
    pub(crate) fn new(shared: Arc<Shared>, sealed: BTreeMap<u64, SegmentRow>) -> Self {
        Self {
            ages: AgeClock::new(&*shared.options.clock),
            shared,
            sealed,
            expiring: None,
            told_to_seal: None,
            waiting: Vec::new(),
            looked_at_clock: None,
            index_failed: None,
            commits: 0,
        }
    }

    /// Works until the writer has ended.
    pub(crate) fn run(mut self) {
        let _noticed = Ended(self.shared.clone());
        // What is merged here can wait; what is written cannot. On Linux this is for this thread alone.
        let _ = rustix::process::nice(5);
        loop {
            let closing = self.wait();
            if self.may_try_index() {
                self.index_frozen();
            }
            if closing {
                break;
            }
            self.retain();
        }
        for waiting in self.waiting.drain(..) {
            let _ = waiting.send(Err(StoreError::Closed));
        }
    }

    fn wait(&mut self) -> bool {
        let shared = self.shared.clone();
        let mut inbox = shared.sealer();
        let timeout = if self.expiring.is_some() || self.told_to_seal.is_some() {
            ANSWER
        } else if self.index_failed.is_some() {
            RETRY
        } else {
            TICK.saturating_sub(self.looked_at_clock.map_or(TICK, |at| at.elapsed()))
        };
        if !inbox.woken && !inbox.closing && !timeout.is_zero() {
            inbox = shared.wait_for_sealer(inbox, timeout);
        }
        inbox.woken = false;
        self.waiting.append(&mut inbox.retention);
        inbox.closing
    }

    fn may_try_index(&mut self) -> bool {
        self.index_failed.is_none_or(|at| at.elapsed() >= RETRY)
    }

    /// Writing the index failed; it has to be opened again even for reading.
    fn index_failed(&mut self, error: &IndexError) {
        tracing::error!(%error, "the index cannot be written; it is tried again");
        self.index_failed = Some(Instant::now());
        let why = if error.is_no_space() { Health::DiskFull } else { Health::Failed(error.to_string()) };
        self.shared.set_index_blocked(Some(why));
        self.shared.directory.give_reserve();
        if let Err(error) = self.shared.index.reopen() {
            tracing::error!(%error, "the index cannot be opened again");
        }
    }

    /// Whether the index finds the space it may need. Asked first, since a failed write costs readers a moment.
    fn has_space(&mut self, layer: &Layer) -> bool {
        let needed = (layer.weight as u64).saturating_mul(3).saturating_add(INDEX_SPACE);
        if self.shared.index.has_space(needed) {
            return true;
        }
        self.shared.directory.give_reserve();
        self.shared.index.has_space(needed)
    }

    /// Takes all sealed segments into the index, oldest first.
    fn index_frozen(&mut self) {
        loop {
            let (layer, behind) = {
                let catalogue = self.shared.catalogue();
                (catalogue.frozen.front().cloned(), catalogue.frozen.len())
            };
            let Some(layer) = layer else { break };
            if !self.has_space(&layer) {
                self.index_failed = Some(Instant::now());
                self.shared.set_index_blocked(Some(Health::DiskFull));
                return;
            }
            match self.index_layer(&layer, behind) {
                Ok(()) if self.index_failed.is_some() => {
                    self.index_failed = None;
                    self.shared.set_index_blocked(None);
                    self.shared.directory.take_reserve();
                }
                Ok(()) => {}
                Err(error) => return self.index_failed(&error),
            }
        }
    }

    fn index_layer(&mut self, layer: &Arc<Layer>, behind: usize) -> Result<(), IndexError> {
        let wanted = self.shared.options.merge
            && !layer.damaged
            && layer.generation == 0
            && behind <= 2
            && !self.shared.closing.load(Ordering::Relaxed)
            && merge::is_worth_it(layer);
        let merged = if wanted { merge::merge(&self.shared, layer) } else { Ok(None) };
        let merged = merged.unwrap_or_else(|error| {
            tracing::warn!(segment = layer.segment, %error, "a segment's blocks could not be merged");
            None
        });
        let meta = {
            let catalogue = self.shared.catalogue();
            Meta { covered: layer.segment, next_run: catalogue.next_run, next_task: catalogue.next_task }
        };
        self.shared.index.commit_layer(layer, merged.as_ref(), meta)?;
        self.shared.catalogue_mut().frozen.pop_front();
        // The writer may wait for this.
        self.shared.wake_sealer(|_| {});
        let mut row =
            SegmentRow { generation: layer.generation, bytes: layer.bytes, oldest: layer.oldest, newest: layer.newest };
        if let Some(merged) = merged {
            self.remove_file(layer.segment, layer.generation);
            (row.generation, row.bytes) = (merged.generation, merged.bytes);
            let counters = &self.shared.counters;
            add(&counters.merged_segments, 1);
            add(&counters.sealed_bytes, merged.bytes);
            counters.sealed_bytes.fetch_sub(layer.bytes, Ordering::Relaxed);
        }
        self.sealed.insert(layer.segment, row);
        Ok(())
    }

    fn path(&self, segment: u64, generation: u32) -> PathBuf {
        self.shared.directory.segments().join(file_name(segment, generation))
    }

    fn remove_file(&self, segment: u64, generation: u32) {
        let path = self.path(segment, generation);
        if let Err(error) = std::fs::remove_file(&path) {
            tracing::warn!(path = %path.display(), %error, "cannot remove a segment that is not needed any more");
        }
    }

    /// Does what retention wants, one step at a time.
    fn retain(&mut self) {
        let asked = !self.waiting.is_empty() || self.expiring.is_some() || self.told_to_seal.is_some();
        let tick = self.looked_at_clock.is_none_or(|at| at.elapsed() >= TICK);
        let too_much = self.is_too_much();
        if !asked && !tick && !too_much {
            return;
        }
        if tick {
            self.free_idle_memory();
        }
        self.looked_at_clock = Some(Instant::now());
        loop {
            match self.due() {
                Ok(Due::Nothing) => {
                    for waiting in self.waiting.drain(..) {
                        let _ = waiting.send(Ok(()));
                    }
                    return;
                }
                Ok(Due::Wait) => return,
                Ok(Due::Seal(segment)) => {
                    if self.shared.queue.push(Job::Seal, 0, true).is_err() {
                        return;
                    }
                    self.told_to_seal = Some((segment, Instant::now()));
                }
                Ok(Due::Expire(segment)) => {
                    if let Err(error) = self.expire(segment) {
                        return self.give_up(&error);
                    }
                }
                Err(error) => return self.give_up(&error),
            }
        }
    }

    /// What is known of the active segment's runs and blocks goes into the index when nobody has written for a while.
    fn free_idle_memory(&mut self) {
        let commits = get(&self.shared.counters.commits);
        let heavy = self.shared.catalogue().active.weight > IDLE_WEIGHT;
        if commits == self.commits && heavy && self.shared.queue.push(Job::Seal, 0, true).is_err() {
            tracing::debug!("the store is being closed");
        }
        self.commits = commits;
    }

    fn give_up(&mut self, error: &StoreError) {
        tracing::warn!(%error, "retention could not do its work; it is tried again");
        for waiting in self.waiting.drain(..) {
            let _ = waiting.send(Err(error.clone()));
        }
    }

    fn is_too_much(&self) -> bool {
        let counters = &self.shared.counters;
        let bytes = get(&counters.sealed_bytes) + get(&counters.active_bytes);
        self.shared.options.retention_bytes.is_some_and(|limit| bytes > limit) && !self.sealed.is_empty()
    }

    fn due(&mut self) -> Result<Due, StoreError> {
        if let Some(mut expiring) = self.expiring.take() {
            match expiring.answer.try_recv() {
                Err(oneshot::error::TryRecvError::Empty) => {
                    self.expiring = Some(expiring);
                    return Ok(Due::Wait);
                }
                Err(oneshot::error::TryRecvError::Closed) => return Err(StoreError::Closed),
                Ok(answer) => {
                    answer?;
                    self.forget(&expiring.expiry)?;
                }
            }
        }
        let (active, oldest, newest, frozen) = {
            let catalogue = self.shared.catalogue();
            let active = &catalogue.active;
            (active.segment, active.oldest, active.newest, !catalogue.frozen.is_empty())
        };
        if let Some((segment, since)) = self.told_to_seal.take()
            && segment == active
            && newest > 0
        {
            if since.elapsed() > PATIENCE {
                return Err(self.shared.failure().unwrap_or(StoreError::DiskFull));
            }
            self.told_to_seal = Some((segment, since));
            return Ok(Due::Wait);
        }
        let age = self.shared.options.retention_age;
        let age = age.map(nanos);
        let now = self.ages.now(&*self.shared.options.clock);
        if self.is_too_much()
            && let Some((segment, _)) = self.sealed.first_key_value()
        {
            return Ok(Due::Expire(*segment));
        }
        let Some(age) = age else { return Ok(Due::Nothing) };
        if let Some((segment, row)) = self.sealed.first_key_value()
            && row.newest.saturating_add(age) < now
        {
            return Ok(Due::Expire(*segment));
        }
        // Otherwise a silent store would keep its last lines for ever.
        let whole = newest > 0 && newest.saturating_add(age) < now;
        if whole || (newest > 0 && oldest.saturating_add(age / 8) < now) {
            return Ok(Due::Seal(active));
        }
        // What was sealed for its age is still on its way into the index.
        let on_its_way = frozen && self.index_failed.is_none();
        Ok(if on_its_way { Due::Wait } else { Due::Nothing })
    }

    fn expire(&mut self, segment: u64) -> Result<(), StoreError> {
        let expiry = self.shared.index.reader()?.expiry(segment)?;
        let (reply, answer) = oneshot::channel();
        // A run that was silent for so long is not waited for. Not by the writer's clock, which may have jumped.
        let options = &self.shared.options;
        let silent_since = self.ages.now(&*options.clock).saturating_sub(nanos(options.idle_run_age));
        let job = Job::Expire(expiry.clone(), silent_since, reply);
        self.shared.queue.push(job, 0, true)?;
        self.expiring = Some(Expiring { expiry, answer });
        Ok(())
    }

    /// The segment is hidden, and what outlives it is on disk elsewhere: now its bytes can go.
    fn forget(&mut self, expiry: &Expiry) -> Result<(), StoreError> {
        if let Err(error) = self.shared.index.forget_segment(expiry) {
            self.index_failed(&error);
            return Err(error.into());
        }
        if let Some(row) = self.sealed.remove(&expiry.segment) {
            self.remove_file(expiry.segment, row.generation);
            let counters = &self.shared.counters;
            counters.sealed_bytes.fetch_sub(row.bytes, Ordering::Relaxed);
            counters.sealed_segments.fetch_sub(1, Ordering::Relaxed);
            add(&counters.expired_segments, 1);
        }
        Ok(())
    }
}

/// Notices the end of the sealer, however it comes.
struct Ended(Arc<Shared>);

impl Drop for Ended {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // Without it nothing is indexed or removed any more, so nothing more may be stored.
            let why = Health::Failed("the sealer's thread failed".to_owned());
            tracing::error!("the sealer's thread failed; the store must be opened again");
            self.0.set_health(why.clone());
            self.0.set_index_blocked(Some(why));
        }
        // The writer may wait for it; whoever wants retention is told that it is over.
        self.0.wake_sealer(|inbox| {
            inbox.ended = true;
            inbox.retention.clear();
        });
    }
}

//! Records on their way to the store, and back: what was queued, what is on disk.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use otto_log_store::{Append, Record, RunId, Store, StoreError};
use tokio::sync::OwnedSemaphorePermit;

use super::memory::Memory;
use crate::metrics::Metrics;

/// What a record means to the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum What {
    Lines,
    /// A gap for lines that were refused, and why.
    Refused(Arc<str>),
    /// A gap told by the client.
    Gap,
    Finish,
}

/// A record to be stored: the sequences from `first` to before `end` (none for the end of a run).
#[derive(Debug)]
pub(crate) struct Submission {
    pub(crate) record: Record,
    pub(crate) first: u64,
    pub(crate) end: u64,
    pub(crate) what: What,
    /// Bytes it holds in memory, about.
    pub(crate) bytes: usize,
}

/// What became of a submission.
#[derive(Debug)]
pub(crate) struct Settled {
    pub(crate) first: u64,
    pub(crate) end: u64,
    pub(crate) what: What,
    pub(crate) result: Result<(), StoreError>,
}

struct Waiting {
    append: Append,
    /// Its outcome, if it was known at once: a future is not asked twice.
    known: Option<Result<u64, StoreError>>,
    first: u64,
    end: u64,
    what: What,
    bytes: usize,
    since: Instant,
}

/// Queues the records of one run in the store, in order, without waiting for the disk.
pub(crate) struct Writer {
    store: Store,
    metrics: Arc<Metrics>,
    memory: Memory,
    run: RunId,
    /// Sequence after what is on disk, as far as this session knows.
    durable: u64,
    /// Not queued, because the store's queue is full.
    held: VecDeque<(Submission, Option<OwnedSemaphorePermit>)>,
    held_since: Option<Instant>,
    pending: VecDeque<Waiting>,
    bytes: usize,
}

impl Writer {
    pub(crate) fn new(context: &super::Context, run: RunId, durable: u64) -> Self {
        Self {
            store: context.store.clone(),
            metrics: context.metrics.clone(),
            memory: context.memory.clone(),
            run,
            durable,
            held: VecDeque::new(),
            held_since: None,
            pending: VecDeque::new(),
            bytes: 0,
        }
    }

    /// Sequence after what is on disk.
    pub(crate) fn durable(&self) -> u64 {
        self.durable
    }

    /// Records queued in the store.
    pub(crate) fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Bytes of records that are not on disk yet.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether something waits for room in the store's queue.
    pub(crate) fn is_held(&self) -> bool {
        !self.held.is_empty()
    }

    /// Since when.
    pub(crate) fn held_since(&self) -> Option<Instant> {
        self.held_since
    }

    /// Whether nothing is under way.
    pub(crate) fn is_idle(&self) -> bool {
        self.pending.is_empty() && self.held.is_empty()
    }

    /// Takes a record. It must begin where the one before it ended. `false`: the store has no room now, and there is no
    /// memory to wait in; whoever can have it sent again should [`release`](Self::release) it.
    #[must_use]
    pub(crate) fn push(&mut self, submission: Submission) -> bool {
        let bytes = submission.bytes;
        self.bytes += bytes;
        self.held.push_back((submission, None));
        self.pump();
        let Some((_, permit)) = self.held.back_mut() else { return true };
        *permit = self.memory.take(bytes);
        permit.is_some()
    }

    /// Queues in the store what there is room for.
    pub(crate) fn pump(&mut self) {
        while let Some((submission, _)) = self.held.front() {
            let mut append = self.store.append(self.run, submission.record.clone());
            // A full queue is known at once, everything else when its turn comes.
            let mut context = Context::from_waker(std::task::Waker::noop());
            let known = Pin::new(&mut append).poll(&mut context);
            if matches!(known, Poll::Ready(Err(StoreError::Busy))) {
                self.held_since.get_or_insert_with(Instant::now);
                return;
            }
            let Some((Submission { first, end, what, bytes, .. }, _)) = self.held.pop_front() else { break };
            let known = match known {
                Poll::Ready(result) => Some(result),
                Poll::Pending => None,
            };
            self.pending.push_back(Waiting { append, known, first, end, what, bytes, since: Instant::now() });
        }
        self.held_since = None;
    }

    /// The outcome of the oldest record that is queued. Never resolves if there is none. Dropping it loses nothing.
    pub(crate) async fn settled(&mut self) -> Settled {
        poll_fn(|context| self.poll_settled(context)).await
    }

    fn poll_settled(&mut self, context: &mut Context<'_>) -> Poll<Settled> {
        let Some(front) = self.pending.front_mut() else { return Poll::Pending };
        let result = match front.known.take() {
            Some(known) => known,
            None => std::task::ready!(Pin::new(&mut front.append).poll(context)),
        };
        let Some(Waiting { first, end, what, bytes, since, .. }) = self.pending.pop_front() else {
            return Poll::Pending;
        };
        self.bytes -= bytes;
        if result.is_ok() {
            self.metrics.append_seconds.observe(since.elapsed().as_secs_f64());
            self.durable = self.durable.max(end);
        }
        Poll::Ready(Settled { first, end, what, result: result.map(drop) })
    }

    /// The outcome of a record if it is known already.
    pub(crate) fn settled_now(&mut self) -> Option<Settled> {
        let mut context = Context::from_waker(std::task::Waker::noop());
        match self.poll_settled(&mut context) {
            Poll::Ready(settled) => Some(settled),
            Poll::Pending => None,
        }
    }

    /// After a refusal: everything behind it is refused as well, because it does not begin where the run goes on. (A gap of
    /// unknown end moves nothing on: nothing may be pushed behind it before it has settled.) Gives the range that was not stored, from `settled` on.
    pub(crate) async fn rewind(&mut self, refused: &Settled) -> (u64, u64) {
        let mut end = refused.end;
        let held: Vec<_> = self.held.drain(..).collect();
        self.held_since = None;
        while !self.pending.is_empty() {
            let settled = self.settled().await;
            debug_assert!(settled.result.is_err(), "a record was stored behind one that was refused");
            end = end.max(settled.end);
        }
        for (submission, _) in held {
            self.bytes -= submission.bytes;
            end = end.max(submission.end);
        }
        (refused.first, end)
    }

    /// Gives up what waits for room in the store's queue: the range that was not queued.
    pub(crate) fn release(&mut self) -> Option<(u64, u64)> {
        let range = self.held.front()?.0.first..self.held.back()?.0.end;
        for (submission, _) in self.held.drain(..) {
            self.bytes -= submission.bytes;
        }
        self.held_since = None;
        Some((range.start, range.end))
    }
}

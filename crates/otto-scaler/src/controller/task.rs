//! A task as the loop holds it: what is stored, what is observed, what waits.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{ApplyReply, DeleteReply};
use crate::event::ScaleEvent;
use crate::plan::{Attempt, Facts};
use crate::task::{Millis, Phase, Record, Worker, WorkerPhase};

/// An event and who waits for its answer.
pub(super) type Waiter = (Box<ScaleEvent>, ApplyReply);

/// How far a worker has been told of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) created: bool,
    pub(super) started: bool,
    /// Ids of the events that told why it waits: every reason is told once, and so many at most.
    pub(super) waiting: BTreeSet<String>,
}

#[derive(Debug, Default)]
pub(super) struct Task {
    /// As the store has it; `None`: the store has none, or was not asked yet.
    pub(super) stored: Option<Arc<Record>>,
    pub(super) facts: Facts,
    /// A read or write of it is under way.
    pub(super) busy: bool,
    /// A write may or may not have happened: it is read again before anything else.
    pub(super) uncertain: bool,
    /// Others wrote it while it was being read or written: the answer may be from before.
    pub(super) overtaken: bool,
    /// Its record is being removed, or may have been.
    pub(super) removing: bool,
    pub(super) waiting: std::collections::VecDeque<Waiter>,
    pub(super) told: BTreeMap<Attempt, Told>,
    /// When changes that are stored without hurry are stored.
    pub(super) soft_due: Option<Millis>,
    /// Planned last: large tasks are planned less often.
    pub(super) planned: Option<Millis>,
    pub(super) wake: Option<Millis>,
    /// Since when workers without a record are known, and whether the store was asked a second time.
    pub(super) orphaned: Option<(Millis, bool)>,
    /// Who waits for its deletion.
    pub(super) deleting: Option<DeleteReply>,
    /// When an index was asked for: until its first attempt starts, for the metric.
    pub(super) asked: BTreeMap<u32, Millis>,
}

impl Task {
    /// Neither stored nor observed nor asked for.
    pub(super) fn is_idle(&self) -> bool {
        !self.busy
            && !self.uncertain
            && self.waiting.is_empty()
            && self.facts.workers.is_empty()
            && self.facts.creating.is_empty()
            && self.deleting.is_none()
    }

    /// The stored record and the worker's place in it, if an attempt of this index may be created now as far as the task
    /// itself is concerned: it is stored as queued, nothing that may change that is under way, and its place is free.
    pub(super) fn may_start(&self, index: u32) -> Option<(Arc<Record>, Worker)> {
        let stored = self.stored.as_ref().filter(|record| record.phase == Phase::Live)?;
        let worker = stored.worker(index).filter(|worker| worker.phase == WorkerPhase::Queued)?;
        (self.facts.is_free(worker) && !self.busy && !self.uncertain).then(|| (Arc::clone(stored), worker.clone()))
    }

    /// It has ended and nothing is left to be done.
    pub(super) fn is_done(&self) -> bool {
        self.is_idle() && self.stored.as_ref().is_none_or(|record| record.phase.is_terminal())
    }
}

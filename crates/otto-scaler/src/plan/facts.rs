//! What is known of workers besides their records.

use std::collections::{BTreeMap, BTreeSet};

use super::patience::Waited;
use super::trouble;
use crate::driver::State;
use crate::task::{Millis, Outcome};

/// What is known of one attempt besides its record.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Fact {
    pub(crate) state: State,
    pub(crate) created_at: Millis,
    pub(crate) started_at: Option<Millis>,
    pub(crate) node_name: String,
    /// When this scaler saw it running first, by its own clock.
    pub(crate) running_since: Option<Millis>,
    /// When this scaler saw it ended first.
    pub(crate) ended_since: Option<Millis>,
    /// What its job waits for, or waited for last.
    pub(crate) waited: Option<Waited>,
    /// What is wrong with it.
    pub(crate) trouble: Option<trouble::Seen>,
    /// When it was told to stop last.
    pub(crate) stop_sent: Option<Millis>,
    /// A stop or removal failed: not again before this.
    pub(crate) hold: Option<Millis>,
    /// A stop or removal is under way.
    pub(crate) busy: bool,
    /// Nothing is left to remove.
    pub(crate) gone: bool,
    /// What it took is not given back yet, though its job has ended.
    pub(crate) lingers: bool,
    /// Since when it is to go and is still there, though its removal was accepted.
    pub(crate) leaving_since: Option<Millis>,
    /// It may stay for ever: nobody counts on what it takes.
    pub(crate) abandoned: bool,
    /// Stops that failed in a row.
    pub(crate) stops_failed: u32,
}

impl Fact {
    /// One that was seen just now.
    pub(crate) fn new(state: State, created_at: Millis) -> Self {
        Self {
            state,
            created_at,
            started_at: None,
            node_name: String::new(),
            running_since: None,
            ended_since: None,
            waited: None,
            trouble: None,
            stop_sent: None,
            hold: None,
            busy: false,
            gone: false,
            lingers: false,
            leaving_since: None,
            abandoned: false,
            stops_failed: 0,
        }
    }

    /// It exists and has not ended.
    pub(crate) fn is_live(&self) -> bool {
        matches!(self.state, State::Created { .. } | State::Running)
    }

    /// It is one of as many workers as there may be.
    pub(crate) fn takes_place(&self) -> bool {
        self.is_live() || (self.lingers && !self.gone)
    }
}

/// An index and its attempt.
pub(crate) type Attempt = (u32, u32);

/// An attempt that the driver could not create yet.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Refused {
    /// Not before this time again.
    pub(crate) until: Millis,
    /// Since when, by the scaler's own clock.
    pub(crate) since: Millis,
    pub(crate) why: Outcome,
    /// It is so for every worker of its resource class ([`admission::door`]).
    pub(crate) common: bool,
    /// Refusals in a row.
    pub(crate) times: u32,
}

/// Everything known of a task's workers.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Facts {
    /// Boxed: a map has room for several from the first one on, and most tasks have one.
    pub(crate) workers: BTreeMap<Attempt, Box<Fact>>,
    /// Creations under way: neither there nor absent.
    pub(crate) creating: BTreeSet<Attempt>,
    /// Not there, but a request to create it may still come through until then.
    pub(crate) unclear: BTreeMap<Attempt, Millis>,
    /// Could not be created so far.
    pub(crate) refused: BTreeMap<Attempt, Refused>,
    /// The driver has listed its workers. Until then a missing one means nothing.
    pub(crate) complete: bool,
}

impl Facts {
    pub(super) fn newest(&self, index: u32) -> Option<(u32, &Fact)> {
        self.workers.range((index, 0)..=(index, u32::MAX)).next_back().map(|((_, attempt), fact)| (*attempt, &**fact))
    }
}

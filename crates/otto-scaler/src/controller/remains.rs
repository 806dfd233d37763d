//! What is left of ended workers, when it is more than may stay.

use super::{Controller, SHORTEN};
use crate::task::Millis;

/// Between two parts of the ended workers above the bound that are removed;
const EVERY: Millis = 1_000;
/// each is this part of them,
const WITHIN: usize = 60;
/// but not fewer than this.
const LEAST: usize = 10;

impl Controller {
    /// Of more than may stay, the oldest go: little by little, since each removal costs as much as a creation, and when
    /// many end, many start. Twice as many never stay.
    pub(super) fn shorten_remains(&mut self) {
        while self.remains.len() > self.options.remains.saturating_mul(2) {
            self.remove_oldest();
        }
        if self.remains.len() > self.options.remains && !std::mem::replace(&mut self.shortening, true) {
            self.chore_at(SHORTEN, self.clock.now() + EVERY);
        }
    }

    /// The part of them whose turn it is.
    pub(super) fn shorten(&mut self) {
        let surplus = self.remains.len().saturating_sub(self.options.remains);
        for _ in 0..surplus.min(surplus.div_ceil(WITHIN).max(LEAST)) {
            self.remove_oldest();
        }
        self.shortening = false;
        self.shorten_remains();
    }

    fn remove_oldest(&mut self) {
        let Some((_, task_id, index, attempt)) = self.remains.pop_first() else { return };
        if let Some(fact) = self.tasks.get_mut(&task_id).and_then(|task| task.facts.workers.get_mut(&(index, attempt)))
        {
            fact.ended_since = Some(0);
            self.dirty.insert(task_id);
        }
    }
}

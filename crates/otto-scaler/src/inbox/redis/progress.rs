//! Which delivered entries are settled: applied, dead-lettered or known from before.
//!
//! Entries are settled in any order, but the marker in Redis must say up to where *all* are settled: a group that was
//! lost is created again from there.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::task::EntryId;

/// Shared by the inbox, which delivers, and the task store, which moves the marker with its writes.
#[derive(Debug, Default)]
pub(crate) struct Progress(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Delivered, from the lowest that is not settled; true: settled.
    delivered: BTreeMap<EntryId, bool>,
    /// Up to here all are settled.
    floor: Option<EntryId>,
    /// What the marker was last set to.
    marked: Option<EntryId>,
}

impl State {
    fn advance(&mut self) {
        while let Some(first) = self.delivered.first_entry().filter(|first| *first.get()) {
            let settled = *first.key();
            first.remove();
            self.floor = self.floor.max(Some(settled));
        }
    }
}

impl Progress {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins again, with the marker as it is in Redis.
    pub(crate) fn reset(&self, marker: Option<EntryId>) {
        *self.state() = State { delivered: BTreeMap::new(), floor: marker, marked: marker };
    }

    /// The entry is under way.
    pub(crate) fn deliver(&self, entry: EntryId) {
        self.state().delivered.insert(entry, false);
    }

    /// The entry needs no more work.
    pub(crate) fn settle(&self, entry: EntryId) {
        let mut state = self.state();
        if let Some(settled) = state.delivered.get_mut(&entry) {
            *settled = true;
        }
        state.advance();
    }

    /// All that was delivered up to `entry` is known here: what is not under way is settled.
    pub(crate) fn known_up_to(&self, entry: EntryId) {
        let mut state = self.state();
        state.delivered.entry(entry).or_insert(true);
        state.advance();
    }

    /// Whether it was delivered and is not settled.
    pub(crate) fn is_under_way(&self, entry: EntryId) -> bool {
        self.state().delivered.get(&entry) == Some(&false)
    }

    /// Where the marker may go when `entry` is applied: to it, if it is under way here and nothing before it is open.
    pub(crate) fn marker_with(&self, entry: EntryId) -> Option<EntryId> {
        let mut state = self.state();
        if !state.delivered.contains_key(&entry) {
            // A late write of a session that has ended: what is open before it is not known here.
            return None;
        }
        let lowest = state.delivered.iter().find(|(_, settled)| !**settled).map(|(id, _)| *id);
        if lowest.is_some_and(|lowest| lowest < entry) {
            return None;
        }
        state.marked = state.marked.max(Some(entry));
        Some(entry)
    }

    /// Where the marker should go, if it is behind.
    pub(crate) fn overdue(&self) -> Option<EntryId> {
        let mut state = self.state();
        let due = state.floor.filter(|floor| state.marked.is_none_or(|marked| marked < *floor));
        state.marked = state.marked.max(due);
        due
    }

    /// Every entry up to the one returned was settled before.
    pub(crate) fn floor(&self) -> Option<EntryId> {
        self.state().floor
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(millis: u64) -> EntryId {
        EntryId { millis, sequence: 0 }
    }

    #[test]
    fn the_marker_never_passes_an_open_entry() {
        let progress = Progress::default();
        progress.reset(Some(id(1)));
        for n in 2..=4 {
            progress.deliver(id(n));
        }
        assert_eq!(progress.marker_with(id(3)), None);
        assert_eq!(progress.marker_with(id(1)), None);
        assert_eq!(progress.marker_with(id(2)), Some(id(2)));
        progress.settle(id(3));
        assert_eq!((progress.floor(), progress.overdue()), (Some(id(1)), None));
        progress.settle(id(2));
        assert_eq!((progress.floor(), progress.overdue(), progress.overdue()), (Some(id(3)), Some(id(3)), None));
        assert_eq!(progress.marker_with(id(4)), Some(id(4)));
        progress.settle(id(4));
        assert_eq!(progress.overdue(), None);
        assert_eq!(progress.marker_with(id(5)), None);
        assert!(!progress.is_under_way(id(4)));
    }

    #[test]
    fn what_was_delivered_to_others_counts_when_all_of_it_is_known() {
        let progress = Progress::default();
        progress.reset(Some(id(1)));
        progress.deliver(id(3));
        progress.deliver(id(9));
        progress.known_up_to(id(9));
        assert_eq!(progress.floor(), Some(id(1)));
        progress.settle(id(3));
        assert_eq!(progress.floor(), Some(id(3)));
        progress.settle(id(9));
        progress.known_up_to(id(12));
        assert_eq!(progress.overdue(), Some(id(12)));
    }

    #[test]
    fn an_entry_claimed_late_does_not_move_it_back() {
        let progress = Progress::default();
        progress.reset(Some(id(9)));
        progress.deliver(id(5));
        assert!(progress.is_under_way(id(5)));
        assert_eq!(progress.marker_with(id(5)), Some(id(5)));
        progress.settle(id(5));
        assert_eq!((progress.floor(), progress.overdue()), (Some(id(9)), None));
    }
}

//! When changes are stored that may wait: what a look at the driver would tell again after a crash (a worker was
//! created, it runs). Readers of this scaler see them at once; those of other replicas when they are stored.
//!
//! Soon, when there are few. In a burst they are spread, so that most tasks have gone on, or ended, by the time it is
//! their turn: what was in between is then never written at all.

use crate::task::Millis;

/// A change by itself waits so long: what comes with it is stored with it.
const DELAY: Millis = 500;
/// Between the turns of two tasks.
const APART: Millis = 50;
/// The longest wait.
const LONGEST: Millis = 10_000;

/// Whose turn is next.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SoftWrites {
    next: Millis,
}

impl SoftWrites {
    /// When a task's changes are stored, the first of which came `now`.
    pub(super) fn turn(&mut self, now: Millis) -> Millis {
        let turn = self.next.clamp(now + DELAY, now + LONGEST);
        self.next = turn + APART;
        turn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_are_stored_soon_and_many_are_spread() {
        let mut writes = SoftWrites::default();
        for now in (1_000_000..1_100_000).step_by(100) {
            assert_eq!(writes.turn(now), now + 500);
        }
        let now = 2_000_000;
        let turns: Vec<_> = (0..1_000).map(|_| writes.turn(now) - now).collect();
        assert_eq!(turns[..4], [500, 550, 600, 650]);
        assert_eq!((turns[190], turns[191], turns[999]), (10_000, 10_000, 10_000));
        assert_eq!(writes.turn(now + 20_000), now + 20_500);
    }
}

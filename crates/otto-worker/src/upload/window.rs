//! What was sent and is not acknowledged yet.
//!
//! Pure: knows neither clock nor connection.

use std::collections::VecDeque;

/// One stream's window. Sequences are those of lines, from 1.
#[derive(Debug)]
pub(crate) struct Window {
    max_bytes: u64,
    max_lines: u64,
    acked: u64,
    next: u64,
    in_flight: VecDeque<Sent>,
    bytes: u64,
    /// Refused for good and behind lines that are not acknowledged yet.
    dropped: Vec<(u64, u64)>,
}

#[derive(Debug, Clone, Copy)]
struct Sent {
    /// Sequence after it.
    end: u64,
    bytes: u64,
}

/// The server says something that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the log server answered about line {sequence}, but only lines up to {sent} were sent")]
pub(crate) struct NeverSent {
    sequence: u64,
    sent: u64,
}

/// What a RETRY leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rewind {
    /// Send again from this sequence.
    To(u64),
    /// It wants lines that are gone; only a new stream can settle what is missing.
    Gone,
}

impl Window {
    /// Nothing is in flight, everything up to `acked` is acknowledged. No limit of lines: `max_lines` 0.
    pub(crate) fn new(acked: u64, max_bytes: u64, max_lines: u64) -> Self {
        Window {
            max_bytes,
            max_lines: if max_lines == 0 { u64::MAX } else { max_lines },
            acked,
            next: acked + 1,
            in_flight: VecDeque::new(),
            bytes: 0,
            dropped: Vec::new(),
        }
    }

    /// Up to here everything is with the server.
    pub(crate) fn acked(&self) -> u64 {
        self.acked
    }

    /// What is to be sent next.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    /// Whether nothing is in flight.
    pub(crate) fn is_idle(&self) -> bool {
        self.acked + 1 == self.next
    }

    /// Whether something may be sent. A block larger than the whole window may, alone.
    pub(crate) fn has_room(&self) -> bool {
        self.bytes < self.max_bytes && self.lines() < self.max_lines
    }

    /// Lines that may be sent now.
    pub(crate) fn room_lines(&self) -> u64 {
        self.max_lines.saturating_sub(self.lines())
    }

    fn lines(&self) -> u64 {
        self.next - 1 - self.acked
    }

    /// The lines from `next()` up to `end` (exclusive) were sent as one message.
    pub(crate) fn sent(&mut self, end: u64, bytes: u64) {
        debug_assert!(end > self.next);
        self.in_flight.push_back(Sent { end, bytes });
        self.bytes += bytes;
        self.next = end;
    }

    /// Everything up to `sequence` is with the server. Repeated and old ones change nothing.
    ///
    /// # Errors
    /// When it was never sent.
    pub(crate) fn acknowledged(&mut self, sequence: u64) -> Result<(), NeverSent> {
        self.check(sequence)?;
        self.acked = self.acked.max(sequence);
        self.dropped.sort_unstable();
        for (first, last) in &self.dropped {
            if *first <= self.acked + 1 {
                self.acked = self.acked.max(*last);
            }
        }
        self.dropped.retain(|(_, last)| *last > self.acked);
        while self.in_flight.front().is_some_and(|sent| sent.end <= self.acked + 1) {
            self.bytes -= self.in_flight.pop_front().map_or(0, |sent| sent.bytes);
        }
        Ok(())
    }

    /// The server refused these for good.
    ///
    /// # Errors
    /// When they were never sent.
    pub(crate) fn dropped(&mut self, first: u64, last: u64) -> Result<(), NeverSent> {
        self.check(last)?;
        if first <= last && last > self.acked {
            self.dropped.push((first, last));
        }
        self.acknowledged(self.acked)
    }

    /// The server wants everything from `sequence` again. That acknowledges nothing: what is before may only be queued
    /// there, and be lost with it.
    ///
    /// # Errors
    /// When it was never sent.
    pub(crate) fn retry(&mut self, sequence: u64) -> Result<Rewind, NeverSent> {
        // The next one to be sent may be asked for: the server has all there is.
        self.check(sequence.saturating_sub(1))?;
        if sequence <= self.acked {
            return Ok(Rewind::Gone);
        }
        // What is before is with the server, but perhaps not on its disk yet: it stays on its way until it is
        // acknowledged.
        while self.in_flight.back().is_some_and(|sent| sent.end > sequence) {
            self.bytes -= self.in_flight.pop_back().map_or(0, |sent| sent.bytes);
        }
        // Refused ones behind are sent again with the rest, and refused again.
        self.dropped.retain_mut(|(first, last)| {
            *last = (*last).min(sequence - 1);
            first <= last
        });
        self.next = sequence;
        Ok(Rewind::To(sequence))
    }

    fn check(&self, sequence: u64) -> Result<(), NeverSent> {
        if sequence >= self.next { Err(NeverSent { sequence, sent: self.next - 1 }) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Step {
        Send {
            lines: u64,
            bytes: u64,
        },
        /// Of what is in flight, in 1/256.
        Ack(u8),
        Retry(u8),
        Drop(u8, u8),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (1..50u64, 1..1000u64).prop_map(|(lines, bytes)| Step::Send { lines, bytes }),
            2 => any::<u8>().prop_map(Step::Ack),
            1 => any::<u8>().prop_map(Step::Retry),
            1 => any::<(u8, u8)>().prop_map(|(a, b)| Step::Drop(a, b)),
        ]
    }

    proptest! {
        #[test]
        fn bytes_in_flight_are_bounded_and_nothing_is_skipped(start in 0..1000u64, steps in prop::collection::vec(step(), 0..100)) {
            let mut window = Window::new(start, 2000, 100);
            for step in steps {
                let (acked, next) = (window.acked(), window.next());
                let at = |share: u8| acked + (next - acked) * u64::from(share) / 256;
                match step {
                    Step::Send { lines, bytes } => {
                        if window.has_room() {
                            let lines = lines.min(window.room_lines());
                            window.sent(next + lines, bytes);
                            prop_assert_eq!(window.next(), next + lines);
                        }
                    }
                    Step::Ack(share) => {
                        window.acknowledged(at(share)).unwrap();
                        prop_assert!(window.acked() >= at(share) && window.next() == next);
                    }
                    Step::Retry(share) => match window.retry(at(share)).unwrap() {
                        Rewind::To(sequence) => {
                            prop_assert!(sequence == at(share) && sequence > acked && sequence <= next);
                            prop_assert_eq!((window.acked(), window.next()), (acked, sequence));
                            prop_assert!(window.in_flight.iter().all(|sent| sent.end <= sequence));
                        }
                        Rewind::Gone => prop_assert!(at(share) <= acked),
                    },
                    Step::Drop(a, b) => {
                        let (first, last) = (at(a.min(b)), at(a.max(b)));
                        window.dropped(first, last).unwrap();
                        if first <= acked + 1 {
                            prop_assert!(window.acked() >= last);
                        } else {
                            prop_assert_eq!(window.acked(), acked);
                        }
                    }
                }
                prop_assert!(window.acked() >= acked && window.acked() < window.next());
                prop_assert!(window.bytes < 3000 && window.next() - 1 - window.acked() <= 100);
                prop_assert_eq!(window.bytes, window.in_flight.iter().map(|sent| sent.bytes).sum::<u64>());
                prop_assert!(window.acknowledged(window.next()).is_err());
                prop_assert!(window.retry(window.next() + 1).is_err());
            }
        }
    }

    #[test]
    fn lines_refused_in_the_middle_are_done_with_once_those_before_are() {
        let mut window = Window::new(0, 1000, 0);
        window.sent(11, 10);
        window.sent(21, 10);
        window.dropped(11, 20).unwrap();
        assert_eq!(window.acked(), 0);
        window.acknowledged(10).unwrap();
        assert_eq!((window.acked(), window.is_idle(), window.bytes), (20, true, 0));
    }

    #[test]
    fn a_retry_of_what_comes_next_is_nothing() {
        let mut window = Window::new(5, 1000, 0);
        window.sent(8, 10);
        assert_eq!(window.retry(8), Ok(Rewind::To(8)));
        assert_eq!((window.acked(), window.next(), window.bytes, window.is_idle()), (5, 8, 10, false));
        assert_eq!(window.retry(3), Ok(Rewind::Gone));
    }

    #[test]
    fn what_is_before_a_retry_stays_on_its_way_until_it_is_acknowledged() {
        let mut window = Window::new(0, 1000, 0);
        for end in [11, 21, 31] {
            window.sent(end, 10);
        }
        window.dropped(15, 30).unwrap();
        assert_eq!(window.retry(21), Ok(Rewind::To(21)));
        assert_eq!((window.acked(), window.next(), window.bytes), (0, 21, 20));
        // It may want them again after all.
        assert_eq!(window.retry(16), Ok(Rewind::To(16)));
        assert_eq!((window.acked(), window.next(), window.bytes), (0, 16, 10));
        window.sent(31, 30);
        window.acknowledged(14).unwrap();
        assert_eq!((window.acked(), window.bytes), (15, 30));
        window.acknowledged(30).unwrap();
        assert!(window.is_idle() && window.bytes == 0);
    }
}

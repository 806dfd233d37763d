//! Where lines that arrive belong in a run. Pure.

use otto_proto::block::{BlockError, Builder, DecodedBlock};
use otto_proto::v1::LogBlock;

/// How a range of sequences lies to the sequence that is expected next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// It begins there.
    Next,
    /// All of it was there before.
    Duplicate,
    /// It begins before and ends after: only the end is new.
    Overlap,
    /// Lines in between are missing.
    Hole,
}

/// Places the range from `first` to before `end`.
pub(crate) fn place(expected: u64, first: u64, end: u64) -> Place {
    if first > expected {
        Place::Hole
    } else if end <= expected {
        Place::Duplicate
    } else if first == expected {
        Place::Next
    } else {
        Place::Overlap
    }
}

/// The lines of a block from sequence `from` on, as a block. `from` must lie inside the block.
pub(crate) fn tail(block: &LogBlock, from: u64) -> Result<LogBlock, BlockError> {
    let decoded = DecodedBlock::decode(block)?;
    let mut builder = Builder::new();
    for line in decoded.lines().skip_while(|line| line.sequence < from) {
        match line.metadata {
            Some(values) => builder.push_with_metadata(line.bytes, line.attributes, values.clone()),
            None => builder.push(line.bytes, line.attributes),
        }
    }
    builder.finish(from, None).ok_or(BlockError::Payload("no line is left"))
}

/// Answers to holes of a numbering sender, which sends on while the answer is under way: one RETRY for each time it
/// leaves the expected sequence, none for what follows on from there.
#[derive(Debug, Default)]
pub(crate) struct Holes {
    /// Where the lines that are passed over would go on.
    passing: Option<u64>,
}

impl Holes {
    /// Lines up to before `end` do not fit. Whether the sender must be told.
    pub(crate) fn misfit(&mut self, first: u64, end: u64) -> bool {
        let told = self.passing == Some(first);
        self.passing = Some(end);
        !told
    }

    /// The sender was told to go back after sending up to before `end`.
    pub(crate) fn told(&mut self, end: u64) {
        self.passing = Some(end);
    }

    /// The sender is where it should be.
    pub(crate) fn fits(&mut self) {
        self.passing = None;
    }
}

#[cfg(test)]
mod tests {
    use otto_proto::block::Attributes;
    use otto_proto::v1::{LogLevel, LogSource};
    use proptest::prelude::*;

    use super::*;

    /// A receiver that follows [`place`] and [`Holes`] stores every line once and in order, whatever is sent.
    #[derive(Default)]
    struct Receiver {
        stored: Vec<u64>,
        holes: Holes,
        retries: Vec<u64>,
    }

    impl Receiver {
        fn take(&mut self, first: u64, end: u64) {
            let expected = self.stored.len() as u64 + 1;
            match place(expected, first, end) {
                Place::Next | Place::Overlap => {
                    self.stored.extend(expected..end);
                    self.holes.fits();
                }
                Place::Duplicate => {}
                Place::Hole => {
                    if self.holes.misfit(first, end) {
                        self.retries.push(expected);
                    }
                }
            }
        }
    }

    proptest! {
        #[test]
        fn stored_once_and_in_order(ranges in prop::collection::vec((1..40u64, 1..10u64), 0..60)) {
            let mut receiver = Receiver::default();
            for (first, count) in ranges {
                receiver.take(first, first + count);
            }
            prop_assert!(receiver.stored.iter().copied().eq(1..=receiver.stored.len() as u64));
        }

        #[test]
        fn a_sender_that_obeys_gets_everything_through(lost in 1..50u64, window in 1..20u64, size in 1..5u64) {
            // Blocks of `size` lines, one is lost on the way; `window` more are sent before the answer is heard.
            let (mut receiver, mut next, mut heard) = (Receiver::default(), 1, 0);
            let mut in_flight = 0;
            let mut losing = true;
            while receiver.stored.len() < 100 {
                let end = next + size;
                if losing && next <= lost && lost < end {
                    losing = false;
                } else {
                    receiver.take(next, end);
                }
                next = end;
                if receiver.retries.len() > heard {
                    in_flight += 1;
                    if in_flight > window {
                        next = receiver.retries[heard];
                        heard += 1;
                        in_flight = 0;
                    }
                }
            }
            prop_assert!(receiver.retries.len() <= 1, "{:?}", receiver.retries);
        }

        #[test]
        fn the_tail_of_a_block_is_its_lines(cut in 0..20u64, zstd in any::<bool>()) {
            let mut builder = Builder::new();
            for n in 0..20u64 {
                let attributes = Attributes { time_unix_nanos: n as i64 * 7, level: LogLevel::Warn, source: LogSource::Stderr };
                let metadata = (n % 3 == 0).then(|| ("n".to_owned(), n.to_string()));
                builder.push_with_metadata(format!("line {n}\n").as_bytes(), attributes, metadata);
            }
            let block = builder.finish(100, zstd.then_some(1)).unwrap();
            let tail = DecodedBlock::decode(&tail(&block, 100 + cut).unwrap()).unwrap();
            let whole = DecodedBlock::decode(&block).unwrap();
            let describe = |l: otto_proto::block::LineRef<'_>| (l.sequence, l.bytes.to_vec(), l.attributes, l.metadata.cloned());
            prop_assert!(tail.lines().map(describe).eq(whole.lines().skip(cut as usize).map(describe)));
        }
    }

    #[test]
    fn places() {
        assert_eq!(place(5, 5, 6), Place::Next);
        assert_eq!(place(5, 1, 5), Place::Duplicate);
        assert_eq!(place(5, 4, 6), Place::Overlap);
        assert_eq!(place(5, 6, 7), Place::Hole);
    }

    #[test]
    fn told_again_only_when_it_left_the_path_again() {
        let mut holes = Holes::default();
        assert!(holes.misfit(7, 8));
        assert!(!holes.misfit(8, 12));
        assert!(holes.misfit(8, 9));
        holes.fits();
        assert!(holes.misfit(9, 10));
    }
}

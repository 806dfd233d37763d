//! How large a message may be, learnt from a transport that refuses larger ones without saying what it takes.
//!
//! Pure.

/// Blocks of lines are cut in halves until they pass. When even this is refused, lines are sent alone and one after the
/// other, so that the one that never passes is known for certain.
#[derive(Debug)]
pub(super) struct Size {
    /// Most bytes of a message.
    most: u64,
    /// The largest that was sent and not refused yet.
    largest: u64,
    /// The line that was sent alone.
    alone: Option<u64>,
    /// The line that never passes.
    unsendable: Option<u64>,
}

/// Below this, lines go alone.
const LEAST: u64 = 4 << 10;
/// After a line was given up.
const AGAIN: u64 = 64 << 10;

impl Default for Size {
    fn default() -> Self {
        Size { most: u64::MAX, largest: 0, alone: None, unsendable: None }
    }
}

impl Size {
    /// Most bytes of lines in a message.
    pub(super) fn most_bytes(&self) -> u64 {
        self.most
    }

    /// Lines are to be sent alone, each when the one before is acknowledged.
    pub(super) fn one_by_one(&self) -> bool {
        self.most < LEAST
    }

    /// Whether this line never passes.
    pub(super) fn is_unsendable(&self, sequence: u64) -> bool {
        self.unsendable == Some(sequence)
    }

    /// A message was sent.
    pub(super) fn sent(&mut self, first: u64, bytes: u64) {
        self.largest = self.largest.max(bytes);
        self.alone = self.one_by_one().then_some(first);
    }

    /// The transport refused one of those that were sent. Whether anything was learnt.
    pub(super) fn refused(&mut self) -> bool {
        if let Some(line) = self.alone.take() {
            self.unsendable = Some(line);
            self.most = AGAIN;
        } else if self.largest == 0 {
            return false;
        } else {
            self.most = (self.largest / 2).min(self.most / 2);
        }
        self.largest = 0;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_then_lines_alone_then_one_is_given_up() {
        let mut size = Size::default();
        assert!(!size.refused(), "nothing was sent: it is about something else");
        let mut times = 0;
        while !size.one_by_one() {
            size.sent(1, size.most_bytes().min(100_000));
            assert!(size.refused());
            times += 1;
            assert!(times < 10);
        }
        size.sent(1, 10);
        size.sent(2, 50_000);
        assert!(size.refused());
        assert!(size.is_unsendable(2) && !size.is_unsendable(1) && !size.one_by_one());
        size.sent(3, 60_000);
        assert!(size.refused());
        assert_eq!(size.most_bytes(), 30_000);
    }
}

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
    /// The line that was sent alone, and its bytes.
    alone: Option<(u64, u64)>,
    /// The line that never passes.
    unsendable: Option<u64>,
}

/// Below this, lines go alone.
const LEAST: u64 = 4 << 10;
/// After a line was given up, or was not though it was refused.
const AGAIN: u64 = 64 << 10;
/// Every transport takes lines below this: only a refusal that certainly is about the size gives one up.
const SURELY_TAKEN: u64 = 64 << 10;

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
        self.alone = self.one_by_one().then_some((first, bytes));
    }

    /// The transport refused one of those that were sent. `certain`: it was the size, beyond doubt; the code of other
    /// refusals is also that of a server which is short of something.
    pub(super) fn refused(&mut self, certain: bool) {
        if let Some((line, bytes)) = self.alone.take() {
            if certain || bytes >= SURELY_TAKEN {
                self.unsendable = Some(line);
            }
            self.most = AGAIN;
        } else if self.largest > 0 {
            self.most = (self.largest / 2).min(self.most / 2);
        }
        self.largest = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_then_lines_alone_then_one_is_given_up() {
        let mut size = Size::default();
        size.refused(true);
        assert_eq!(size.most_bytes(), u64::MAX, "nothing was sent: it is about something else");
        let mut times = 0;
        while !size.one_by_one() {
            size.sent(1, size.most_bytes().min(100_000));
            size.refused(true);
            times += 1;
            assert!(times < 10);
        }
        size.sent(1, 10);
        size.sent(2, 50_000);
        size.refused(true);
        assert!(size.is_unsendable(2) && !size.is_unsendable(1) && !size.one_by_one());
        size.sent(3, 60_000);
        size.refused(true);
        assert_eq!(size.most_bytes(), 30_000);
    }

    #[test]
    fn a_small_line_is_given_up_only_for_certain() {
        for (bytes, certain, given_up) in
            [(10, false, false), (65_535, false, false), (65_536, false, true), (10, true, true)]
        {
            let mut size = Size { most: LEAST - 1, ..Size::default() };
            size.sent(7, bytes);
            size.refused(certain);
            assert_eq!((size.is_unsendable(7), size.one_by_one()), (given_up, false), "{bytes} {certain}");
        }
    }
}

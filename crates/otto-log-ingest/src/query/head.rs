//! The next lines of one run, picked from a block.

use std::collections::{HashMap, VecDeque};

use otto_log_store::Block;
use otto_proto::block::Attributes;
use otto_proto::v1::LogLine;

use super::request::Matcher;

/// Lines picked from a block at once. Bounds memory where a block holds very many very short lines.
const PICKED: usize = 1 << 16;

struct Picked {
    sequence: u64,
    offset: usize,
    length: usize,
    unterminated: bool,
    attributes: Attributes,
    metadata: HashMap<String, String>,
}

/// The wanted lines of a block, in order.
pub(super) struct Head {
    block: Block,
    /// Sequence after the last line that may be shown.
    end: u64,
    /// Lines of the block looked at.
    walked: usize,
    picked: VecDeque<Picked>,
}

impl Head {
    /// `None` if no line of the block is wanted.
    pub(super) fn new(block: Block, end: u64, matcher: &Matcher) -> Option<Self> {
        let skipped = usize::try_from(block.from.saturating_sub(block.decoded.first_sequence())).unwrap_or(usize::MAX);
        let mut head = Self { block, end, walked: skipped, picked: VecDeque::new() };
        head.refill(matcher);
        (!head.picked.is_empty()).then_some(head)
    }

    /// Memory it holds, about, bytes.
    pub(super) fn bytes(&self) -> usize {
        self.block.decoded.text().len()
            + 4 * self.block.decoded.line_count() as usize
            + self.picked.capacity() * size_of::<Picked>()
    }

    /// Time of the next line.
    pub(super) fn time(&self) -> Option<i64> {
        self.picked.front().map(|line| line.attributes.time_unix_nanos)
    }

    /// The next line.
    pub(super) fn take(&mut self, worker_id: &str, run_id: &str, matcher: &Matcher) -> Option<LogLine> {
        let picked = self.picked.pop_front()?;
        if self.picked.is_empty() {
            self.refill(matcher);
        }
        Some(LogLine {
            worker_id: worker_id.to_owned(),
            run_id: run_id.to_owned(),
            sequence: picked.sequence,
            time_unix_nanos: picked.attributes.time_unix_nanos,
            level: picked.attributes.level.into(),
            source: picked.attributes.source.into(),
            message: self.block.decoded.text().slice(picked.offset..picked.offset + picked.length),
            unterminated: picked.unterminated,
            metadata: picked.metadata,
        })
    }

    fn refill(&mut self, matcher: &Matcher) {
        let from = self.block.from;
        for line in self.block.decoded.lines().skip(self.walked) {
            if self.picked.len() >= PICKED || line.sequence >= self.end {
                break;
            }
            self.walked += 1;
            if line.sequence >= from && matcher.matches(&line) {
                self.picked.push_back(Picked {
                    sequence: line.sequence,
                    offset: line.offset,
                    length: line.message().len(),
                    unterminated: line.unterminated(),
                    attributes: line.attributes,
                    metadata: line.metadata.cloned().unwrap_or_default(),
                });
            }
        }
    }
}

use std::collections::HashMap;

use prost::Message;

use super::{Attributes, FORMAT, MAX_LINES, MAX_PAYLOAD_BYTES, varint};
use crate::v1::{BlockPayload, Compression, LineMetadata, LogBlock};

/// Collects lines of one run and makes a block of them. Reused from block to block without new allocations of text.
#[derive(Default)]
pub struct Builder {
    text: Vec<u8>,
    lengths: Vec<u8>,
    runs: Vec<(u32, Attributes)>,
    metadata: Vec<LineMetadata>,
    lines: u32,
}

impl Builder {
    /// An empty builder.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Lines collected.
    #[must_use]
    pub fn lines(&self) -> u32 {
        self.lines
    }

    /// Bytes of lines collected, newlines included.
    #[must_use]
    pub fn text_bytes(&self) -> usize {
        self.text.len()
    }

    /// Whether there is no line.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lines == 0
    }

    /// Whether a line of `bytes` still fits the limits of a block.
    #[must_use]
    pub fn fits(&self, bytes: usize) -> bool {
        // 32 bytes bound what one line can add to the columns.
        self.lines < MAX_LINES
            && self.text.len() + self.lengths.len() + self.runs.len() * 24 + bytes + 1024 < MAX_PAYLOAD_BYTES as usize
    }

    /// Adds one line with its newline, if it had one.
    pub fn push(&mut self, line: &[u8], attributes: Attributes) {
        self.text.extend_from_slice(line);
        varint::put(&mut self.lengths, line.len() as u64);
        self.count(1, attributes);
    }

    /// Adds one line with metadata.
    pub fn push_with_metadata(
        &mut self,
        line: &[u8],
        attributes: Attributes,
        values: impl IntoIterator<Item = (String, String)>,
    ) {
        let values: HashMap<_, _> = values.into_iter().collect();
        if !values.is_empty() {
            self.metadata.push(LineMetadata { index: self.lines, values });
        }
        self.push(line, attributes);
    }

    /// Adds all lines of `bytes`, which ends with a newline; returns how many. One copy, one search for newlines.
    pub fn push_terminated(&mut self, bytes: &[u8], attributes: Attributes) -> u32 {
        debug_assert!(bytes.is_empty() || bytes.ends_with(b"\n"));
        self.text.extend_from_slice(bytes);
        let (mut start, mut lines) = (0, 0);
        for end in memchr::memchr_iter(b'\n', bytes) {
            varint::put(&mut self.lengths, (end + 1 - start) as u64);
            start = end + 1;
            lines += 1;
        }
        if lines > 0 {
            self.count(lines, attributes);
        }
        lines
    }

    fn count(&mut self, lines: u32, attributes: Attributes) {
        self.lines += lines;
        match self.runs.last_mut() {
            Some((count, last)) if *last == attributes => *count += lines,
            _ => self.runs.push((lines, attributes)),
        }
    }

    /// Makes the block and empties the builder; `None` if it holds no line. With `zstd_level` the payload is compressed
    /// if that makes it smaller by a tenth at least.
    pub fn finish(&mut self, first_sequence: u64, zstd_level: Option<i32>) -> Option<LogBlock> {
        let (_, first) = *self.runs.first()?;
        let mut min = first.time_unix_nanos;
        let mut max = min;
        let (mut level_mask, mut source_mask) = (0u32, 0u32);
        for (_, run) in &self.runs {
            min = min.min(run.time_unix_nanos);
            max = max.max(run.time_unix_nanos);
            level_mask |= 1 << (run.level as u32);
            source_mask |= 1 << (run.source as u32);
        }
        let mut runs = Vec::with_capacity(self.runs.len() * 8);
        let mut time = min;
        for (count, run) in self.runs.drain(..) {
            varint::put(&mut runs, u64::from(count));
            varint::put(&mut runs, varint::zigzag(run.time_unix_nanos.wrapping_sub(time)));
            runs.push((run.level as u8 & 0xf) | ((run.source as u8 & 0x3) << 4));
            time = run.time_unix_nanos;
        }
        let payload = encode_payload(&self.text, &self.lengths, &runs, &self.metadata);
        let payload_bytes = payload.len() as u32;
        let compressed = zstd_level
            .and_then(|level| zstd::bulk::compress(&payload, level).ok())
            .filter(|smaller| smaller.len() < payload.len() - payload.len() / 10);
        let (compression, payload) = match compressed {
            Some(smaller) => (Compression::Zstd, smaller),
            None => (Compression::None, payload),
        };
        let line_count = std::mem::take(&mut self.lines);
        self.text.clear();
        self.lengths.clear();
        self.metadata.clear();
        Some(LogBlock {
            format: FORMAT,
            first_sequence,
            line_count,
            min_time_unix_nanos: min,
            max_time_unix_nanos: max,
            level_mask,
            source_mask,
            compression: compression.into(),
            payload_bytes,
            payload_crc32c: crc32c::crc32c(&payload),
            payload: payload.into(),
        })
    }
}

/// What `BlockPayload::encode_to_vec` would give, without moving the columns into a message first.
fn encode_payload(text: &[u8], lengths: &[u8], runs: &[u8], metadata: &[LineMetadata]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() + lengths.len() + runs.len() + 32);
    for (field, bytes) in [(1u64, text), (2, lengths), (3, runs)] {
        varint::put(&mut out, field << 3 | 2);
        varint::put(&mut out, bytes.len() as u64);
        out.extend_from_slice(bytes);
    }
    if !metadata.is_empty() {
        let rest = BlockPayload { metadata: metadata.to_vec(), ..BlockPayload::default() };
        out.extend_from_slice(&rest.encode_to_vec());
    }
    out
}

use std::collections::HashMap;

use bytes::Bytes;
use prost::Message;

use super::{Attributes, BlockError, FORMAT, MAX_LINES, MAX_PAYLOAD_BYTES, varint};
use crate::v1::{BlockPayload, Compression, LineMetadata, LogBlock, LogLevel, LogSource};

impl LogBlock {
    /// Checks header and checksum without touching the lines: what a server does before it stores a block.
    ///
    /// # Errors
    /// [`BlockError`] names the field that is wrong.
    pub fn check(&self) -> Result<(), BlockError> {
        if self.format != FORMAT {
            return Err(BlockError::Format(self.format));
        }
        let range = |field, value: u64, ok: bool, accepted| {
            if ok { Ok(()) } else { Err(BlockError::Field { field, value, accepted }) }
        };
        range("first_sequence", self.first_sequence, self.first_sequence >= 1, "1 or more")?;
        range("line_count", self.line_count.into(), (1..=MAX_LINES).contains(&self.line_count), "1 to 1,048,576")?;
        range(
            "first_sequence",
            self.first_sequence,
            self.first_sequence.checked_add(u64::from(self.line_count)).is_some_and(|end| end <= i64::MAX as u64),
            "below 2^63",
        )?;
        range(
            "payload_bytes",
            self.payload_bytes.into(),
            self.payload_bytes <= MAX_PAYLOAD_BYTES,
            "at most 16,777,216",
        )?;
        range(
            "compression",
            self.compression.unsigned_abs().into(),
            Compression::try_from(self.compression).is_ok(),
            "0 (none) or 1 (zstd)",
        )?;
        let computed = crc32c::crc32c(&self.payload);
        if computed != self.payload_crc32c {
            return Err(BlockError::Checksum { found: self.payload_crc32c, computed });
        }
        Ok(())
    }

    /// Sequence after the last line.
    #[must_use]
    pub fn end_sequence(&self) -> u64 {
        self.first_sequence.saturating_add(u64::from(self.line_count))
    }
}

/// A block opened for reading. Its columns have been checked, so [`lines`](Self::lines) cannot fail.
#[derive(Debug, Clone)]
pub struct DecodedBlock {
    first_sequence: u64,
    line_count: u32,
    min_time_unix_nanos: i64,
    payload: BlockPayload,
}

impl DecodedBlock {
    /// Decompresses and checks a block.
    ///
    /// # Errors
    /// Anything that does not fit: header, checksum, compression, columns.
    pub fn decode(block: &LogBlock) -> Result<Self, BlockError> {
        block.check()?;
        let raw = match Compression::try_from(block.compression) {
            Ok(Compression::Zstd) => zstd::bulk::decompress(&block.payload, block.payload_bytes as usize)
                .map(Bytes::from)
                .map_err(|_| BlockError::Payload("not a zstd frame of payload_bytes"))?,
            _ => block.payload.clone(),
        };
        if raw.len() != block.payload_bytes as usize {
            return Err(BlockError::Payload("its length is not payload_bytes"));
        }
        let payload = BlockPayload::decode(raw).map_err(|_| BlockError::Payload("not a BlockPayload"))?;
        let decoded = Self {
            first_sequence: block.first_sequence,
            line_count: block.line_count,
            min_time_unix_nanos: block.min_time_unix_nanos,
            payload,
        };
        decoded.verify()?;
        Ok(decoded)
    }

    fn verify(&self) -> Result<(), BlockError> {
        let mut lengths = &self.payload.lengths[..];
        let (mut lines, mut bytes) = (0u64, 0u64);
        while !lengths.is_empty() {
            let length = varint::take(&mut lengths).ok_or(BlockError::Payload("lengths are cut off"))?;
            bytes = bytes.checked_add(length).ok_or(BlockError::Payload("lengths exceed text"))?;
            lines += 1;
        }
        if lines != u64::from(self.line_count) {
            return Err(BlockError::Payload("lengths are not line_count many"));
        }
        if bytes != self.payload.text.len() as u64 {
            return Err(BlockError::Payload("lengths do not add up to text"));
        }
        let mut runs = &self.payload.runs[..];
        let mut covered = 0u64;
        while !runs.is_empty() {
            let (count, _, _) = take_run(&mut runs).ok_or(BlockError::Payload("runs are cut off"))?;
            covered = covered.checked_add(count).ok_or(BlockError::Payload("runs are not line_count many"))?;
            if count == 0 {
                return Err(BlockError::Payload("a run of no lines"));
            }
        }
        if covered != lines {
            return Err(BlockError::Payload("runs are not line_count many"));
        }
        if !self.payload.metadata.is_sorted_by(|a, b| a.index < b.index) {
            return Err(BlockError::Payload("metadata is not in order"));
        }
        Ok(())
    }

    /// Bytes of all lines in order.
    #[must_use]
    pub fn text(&self) -> &Bytes {
        &self.payload.text
    }

    /// Sequence of the first line.
    #[must_use]
    pub fn first_sequence(&self) -> u64 {
        self.first_sequence
    }

    /// Number of lines.
    #[must_use]
    pub fn line_count(&self) -> u32 {
        self.line_count
    }

    /// All lines in order.
    #[must_use]
    pub fn lines(&self) -> Lines<'_> {
        Lines {
            text: &self.payload.text,
            lengths: &self.payload.lengths,
            runs: &self.payload.runs,
            metadata: &self.payload.metadata,
            left_in_run: 0,
            attributes: Attributes {
                time_unix_nanos: self.min_time_unix_nanos,
                level: LogLevel::Unspecified,
                source: LogSource::Unspecified,
            },
            offset: 0,
            index: 0,
            first_sequence: self.first_sequence,
        }
    }
}

/// One line of a block.
#[derive(Clone, Copy, Debug)]
pub struct LineRef<'a> {
    /// In its run.
    pub sequence: u64,
    /// Where it begins in [`DecodedBlock::text`].
    pub offset: usize,
    /// With its newline, if it had one.
    pub bytes: &'a [u8],
    /// Time, level, source.
    pub attributes: Attributes,
    /// `None` for most.
    pub metadata: Option<&'a HashMap<String, String>>,
}

impl<'a> LineRef<'a> {
    /// Without the newline.
    #[must_use]
    pub fn message(&self) -> &'a [u8] {
        self.bytes.strip_suffix(b"\n").unwrap_or(self.bytes)
    }

    /// It has no newline: split at a limit and continued by the next line of its source, or the last one.
    #[must_use]
    pub fn unterminated(&self) -> bool {
        !self.bytes.ends_with(b"\n")
    }
}

/// Iterator over the lines of a block.
#[derive(Clone)]
pub struct Lines<'a> {
    text: &'a [u8],
    lengths: &'a [u8],
    runs: &'a [u8],
    metadata: &'a [LineMetadata],
    left_in_run: u64,
    attributes: Attributes,
    offset: usize,
    index: u32,
    first_sequence: u64,
}

impl<'a> Iterator for Lines<'a> {
    type Item = LineRef<'a>;

    fn next(&mut self) -> Option<LineRef<'a>> {
        let length = varint::take(&mut self.lengths)? as usize;
        let bytes = self.text.get(self.offset..self.offset.checked_add(length)?)?;
        if self.left_in_run == 0 {
            let (count, delta, attribute) = take_run(&mut self.runs)?;
            self.left_in_run = count;
            self.attributes = Attributes {
                time_unix_nanos: self.attributes.time_unix_nanos.wrapping_add(delta),
                level: LogLevel::try_from(i32::from(attribute & 0xf)).unwrap_or(LogLevel::Unspecified),
                source: LogSource::try_from(i32::from((attribute >> 4) & 0x3)).unwrap_or(LogSource::Unspecified),
            };
        }
        self.left_in_run -= 1;
        let metadata = match self.metadata.first() {
            Some(first) if first.index == self.index => {
                self.metadata = &self.metadata[1..];
                Some(&first.values)
            }
            _ => None,
        };
        let line = LineRef {
            sequence: self.first_sequence + u64::from(self.index),
            offset: self.offset,
            bytes,
            attributes: self.attributes,
            metadata,
        };
        self.offset += length;
        self.index += 1;
        Some(line)
    }
}

fn take_run(runs: &mut &[u8]) -> Option<(u64, i64, u8)> {
    let count = varint::take(runs)?;
    let delta = varint::unzigzag(varint::take(runs)?);
    let (&attribute, rest) = runs.split_first()?;
    *runs = rest;
    Some((count, delta, attribute))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::block::Builder;

    fn attributes() -> impl Strategy<Value = Attributes> {
        (any::<i64>(), 0..=6i32, 0..=2i32).prop_map(|(time_unix_nanos, level, source)| Attributes {
            time_unix_nanos,
            level: LogLevel::try_from(level).unwrap(),
            source: LogSource::try_from(source).unwrap(),
        })
    }

    proptest! {
        #[test]
        fn what_was_pushed_comes_back(
            lines in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..80), attributes(), prop::option::of("[a-z]{1,4}")), 1..60),
            first in 1..=1_000_000u64,
            compress in any::<bool>(),
        ) {
            let mut builder = Builder::new();
            for (line, attributes, value) in &lines {
                builder.push_with_metadata(line, *attributes, value.iter().map(|v| ("k".to_owned(), v.clone())));
            }
            let block = builder.finish(first, compress.then_some(1)).unwrap();
            prop_assert!(builder.is_empty());
            let decoded = DecodedBlock::decode(&LogBlock::decode(block.encode_to_vec().as_slice()).unwrap()).unwrap();
            let back: Vec<_> = decoded.lines().collect();
            prop_assert_eq!(back.len(), lines.len());
            for (index, (got, (line, attributes, value))) in back.iter().zip(&lines).enumerate() {
                prop_assert_eq!(got.bytes, &line[..]);
                prop_assert_eq!(got.sequence, first + index as u64);
                prop_assert_eq!(got.attributes, *attributes);
                prop_assert_eq!(got.metadata.and_then(|m| m.get("k")), value.as_ref());
            }
        }

        #[test]
        fn garbage_is_an_error_not_a_panic(payload in prop::collection::vec(any::<u8>(), 0..200), lines in 1..50u32, zstd in any::<bool>()) {
            let block = LogBlock {
                format: 1,
                first_sequence: 1,
                line_count: lines,
                compression: zstd.into(),
                payload_bytes: payload.len() as u32,
                payload_crc32c: crc32c::crc32c(&payload),
                payload: payload.into(),
                ..LogBlock::default()
            };
            if let Ok(decoded) = DecodedBlock::decode(&block) {
                prop_assert_eq!(decoded.lines().count(), lines as usize);
            }
        }
    }

    #[test]
    fn many_lines_at_once_are_cut_at_their_newlines() {
        let at = |time| Attributes { time_unix_nanos: time, level: LogLevel::Info, source: LogSource::Stdout };
        let mut builder = Builder::new();
        assert_eq!(builder.push_terminated(b"a\n\nbc\n", at(5)), 3);
        builder.push(b"open", at(7));
        let block = builder.finish(10, None).unwrap();
        assert_eq!((block.line_count, block.min_time_unix_nanos, block.max_time_unix_nanos), (4, 5, 7));
        let decoded = DecodedBlock::decode(&block).unwrap();
        let lines: Vec<_> = decoded.lines().map(|l| (l.sequence, l.message(), l.unterminated())).collect();
        assert_eq!(lines, [(10, &b"a"[..], false), (11, b"", false), (12, b"bc", false), (13, b"open", true)]);
    }

    #[test]
    fn a_flipped_bit_is_found() {
        let mut builder = Builder::new();
        builder
            .push(b"x\n", Attributes { time_unix_nanos: 1, level: LogLevel::Unspecified, source: LogSource::Stdout });
        let mut block = builder.finish(1, None).unwrap();
        let mut bytes = block.payload.to_vec();
        bytes[2] ^= 1;
        block.payload = bytes.into();
        assert!(matches!(block.check(), Err(BlockError::Checksum { .. })));
    }
}

//! Cuts a block that was built before the server's limits, or its progress, were known.

use otto_proto::block::{BlockError, Builder, DecodedBlock};
use otto_proto::v1::{Compression, LogBlock};

/// Most a piece may hold. A piece has one line at least, whatever its size.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Most {
    pub(crate) lines: u64,
    /// Bytes of lines.
    pub(crate) bytes: u64,
}

impl Most {
    /// Whether a block is small enough as it is.
    pub(crate) fn allows(&self, block: &LogBlock) -> bool {
        let bytes = u64::from(block.payload_bytes);
        u64::from(block.line_count) <= self.lines.max(1) && (bytes <= self.bytes || block.line_count == 1)
    }
}

/// The part of `block` that begins at sequence `from` and holds at most `most`. `from` lies within the block.
///
/// # Errors
/// When the block is damaged, or does not hold `from`.
pub(crate) fn piece(block: &LogBlock, from: u64, most: Most) -> Result<LogBlock, BlockError> {
    let decoded = DecodedBlock::decode(block)?;
    let mut builder = Builder::new();
    for line in decoded.lines().skip_while(|line| line.sequence < from) {
        let full = u64::from(builder.lines()) >= most.lines
            || (builder.text_bytes() + line.bytes.len()) as u64 > most.bytes
            || !builder.fits(line.bytes.len());
        if full && !builder.is_empty() {
            break;
        }
        let metadata = line.metadata.into_iter().flatten().map(|(key, value)| (key.clone(), value.clone()));
        builder.push_with_metadata(line.bytes, line.attributes, metadata);
    }
    let level = (block.compression == i32::from(Compression::Zstd)).then_some(1);
    builder.finish(from, level).ok_or(BlockError::Field {
        field: "first_sequence",
        value: from,
        accepted: "a line of the block",
    })
}

#[cfg(test)]
mod tests {
    use otto_proto::block::Attributes;
    use otto_proto::v1::{LogLevel, LogSource};
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_pieces_are_the_whole(
            lines in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..40), 0..3i64), 1..60),
            first in 1..1000u64,
            skip in 0..60u64,
            most_lines in 0..20u64,
            most_bytes in 0..100u64,
            zstd in any::<bool>(),
        ) {
            let mut builder = Builder::new();
            for (line, time) in &lines {
                let attributes = Attributes { time_unix_nanos: *time, level: LogLevel::Info, source: LogSource::Stdout };
                builder.push_with_metadata(line, attributes, (line.len() > 30).then(|| ("k".into(), time.to_string())));
            }
            let block = builder.finish(first, zstd.then_some(1)).unwrap();
            let most = Most { lines: most_lines, bytes: most_bytes };
            let mut from = first + skip.min(lines.len() as u64 - 1);
            let expected: Vec<_> = lines[(from - first) as usize..].to_vec();
            let mut got = Vec::new();
            while from < block.end_sequence() {
                let piece = piece(&block, from, most).unwrap();
                prop_assert_eq!(piece.first_sequence, from);
                prop_assert!(u64::from(piece.line_count) <= most_lines.max(1));
                let decoded = DecodedBlock::decode(&piece).unwrap();
                prop_assert!(piece.line_count == 1 || decoded.text().len() as u64 <= most_bytes);
                for line in decoded.lines() {
                    prop_assert_eq!(line.metadata.is_some(), line.bytes.len() > 30);
                    got.push((line.bytes.to_vec(), line.attributes.time_unix_nanos));
                }
                from = piece.end_sequence();
            }
            prop_assert_eq!(got, expected);
        }
    }

    #[test]
    fn a_sequence_outside_is_an_error() {
        let mut builder = Builder::new();
        let attributes = Attributes { time_unix_nanos: 1, level: LogLevel::Info, source: LogSource::Stdout };
        builder.push(b"x\n", attributes);
        let block = builder.finish(5, None).unwrap();
        assert!(piece(&block, 6, Most { lines: 10, bytes: 10 }).is_err());
    }
}

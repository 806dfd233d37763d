//! Cuts a stream of bytes into lines, losing none.

/// A part of a stream, in order.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece<'a> {
    /// One or more lines, each with its newline.
    Lines(&'a [u8]),
    /// A line without its newline, never empty: it is cut at the limit and goes on in the next piece, or is the last.
    Open(&'a [u8]),
}

/// Keeps the beginning of a line whose end was not read yet.
#[derive(Debug, Default)]
pub(crate) struct Splitter {
    partial: Vec<u8>,
}

impl Splitter {
    /// Whether a beginning is kept.
    pub(crate) fn has_partial(&self) -> bool {
        !self.partial.is_empty()
    }

    /// Takes what was read. A line of more than `limit` bytes (its newline not counted) is cut, between characters where
    /// it is UTF-8.
    pub(crate) fn feed(&mut self, mut input: &[u8], limit: usize, sink: &mut impl FnMut(Piece<'_>)) {
        let limit = limit.max(1);
        while !self.partial.is_empty() && !input.is_empty() {
            let newline = memchr::memchr(b'\n', input);
            let content = newline.unwrap_or(input.len());
            let room = limit.saturating_sub(self.partial.len());
            if content <= room {
                let taken = newline.map_or(content, |at| at + 1);
                self.partial.extend_from_slice(&input[..taken]);
                input = &input[taken..];
                if newline.is_some() {
                    sink(Piece::Lines(&self.partial));
                    self.clear();
                }
            } else {
                // One byte more than fits shows that the line is longer than the limit.
                self.partial.extend_from_slice(&input[..room]);
                input = &input[room..];
                self.cut_partial(limit, sink);
            }
        }
        self.feed_fresh(input, limit, sink);
    }

    /// With no beginning kept.
    fn feed_fresh(&mut self, input: &[u8], limit: usize, sink: &mut impl FnMut(Piece<'_>)) {
        // Lines are handed over in stretches as long as possible.
        let (mut stretch, mut line) = (0, 0);
        for newline in memchr::memchr_iter(b'\n', input) {
            if newline - line > limit {
                if stretch < line {
                    sink(Piece::Lines(&input[stretch..line]));
                }
                stretch = cut_long(&input[..newline], line, limit, sink);
            }
            line = newline + 1;
        }
        if stretch < line {
            sink(Piece::Lines(&input[stretch..line]));
        }
        let rest = if input.len() - line > limit { cut_long(input, line, limit, sink) } else { line };
        self.partial.extend_from_slice(&input[rest..]);
    }

    /// Gives out the beginning of a line for which nothing more came for a while, so that prompts are seen. The first
    /// bytes of a character that is not complete are kept.
    pub(crate) fn flush(&mut self, sink: &mut impl FnMut(Piece<'_>)) {
        let whole = self.partial.len() - incomplete_character(&self.partial);
        // Nothing but such a beginning for so long is no UTF-8.
        let whole = if whole == 0 { self.partial.len() } else { whole };
        if whole > 0 {
            sink(Piece::Open(&self.partial[..whole]));
            self.partial.drain(..whole);
        }
    }

    /// Gives out what is left.
    pub(crate) fn finish(&mut self, sink: &mut impl FnMut(Piece<'_>)) {
        if !self.partial.is_empty() {
            sink(Piece::Open(&self.partial));
            self.clear();
        }
    }

    fn cut_partial(&mut self, limit: usize, sink: &mut impl FnMut(Piece<'_>)) {
        let at = cut_at(&self.partial, limit);
        sink(Piece::Open(&self.partial[..at]));
        self.partial.drain(..at);
    }

    fn clear(&mut self) {
        self.partial.clear();
        // One long line is no reason to keep its memory.
        self.partial.shrink_to(16 << 10);
    }
}

/// Hands over pieces of the line that begins at `start` until at most `limit` bytes are left; returns where they begin.
fn cut_long(input: &[u8], mut start: usize, limit: usize, sink: &mut impl FnMut(Piece<'_>)) -> usize {
    while input.len() - start > limit {
        let at = cut_at(&input[start..], limit);
        sink(Piece::Open(&input[start..start + at]));
        start += at;
    }
    start
}

/// Where to cut: at `limit`, or up to three bytes earlier if that is between two characters.
fn cut_at(bytes: &[u8], limit: usize) -> usize {
    let limit = limit.min(bytes.len());
    let at = limit - incomplete_character(&bytes[..limit]);
    if at == 0 { limit } else { at }
}

/// How many bytes at the end begin a UTF-8 character that is not complete.
fn incomplete_character(bytes: &[u8]) -> usize {
    for back in 1..=bytes.len().min(3) {
        let byte = bytes[bytes.len() - back];
        let length = match byte {
            0x80..0xc0 => continue,
            0xc0..0xe0 => 2,
            0xe0..0xf0 => 3,
            0xf0.. => 4,
            _ => 1,
        };
        return if length > back { back } else { 0 };
    }
    0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(prop_oneof![3 => Just(b'a'), 1 => Just(b'\n'), 1 => any::<u8>()], 0..200)
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_no_line_is_too_long(
            reads in prop::collection::vec((bytes(), 1..20usize, prop::bool::weighted(0.1)), 0..20),
        ) {
            let mut splitter = Splitter::default();
            let (mut out, mut whole) = (Vec::new(), Vec::new());
            let mut most = 0;
            for (read, limit, flush) in &reads {
                most = most.max(*limit);
                whole.extend_from_slice(read);
                let mut sink = |piece: Piece<'_>| {
                    match piece {
                        Piece::Lines(lines) => {
                            assert!(lines.ends_with(b"\n"));
                            assert!(lines.split_inclusive(|b| *b == b'\n').all(|line| line.len() <= most + 1));
                            out.extend_from_slice(lines);
                        }
                        Piece::Open(open) => {
                            assert!(!open.is_empty() && open.len() <= most && !open.contains(&b'\n'));
                            out.extend_from_slice(open);
                        }
                    }
                };
                splitter.feed(read, *limit, &mut sink);
                if *flush {
                    splitter.flush(&mut sink);
                }
            }
            splitter.finish(&mut |piece| match piece {
                Piece::Lines(part) | Piece::Open(part) => out.extend_from_slice(part),
            });
            prop_assert_eq!(out, whole);
        }

        #[test]
        fn how_it_was_read_does_not_matter(text in bytes(), cuts in prop::collection::vec(1..40usize, 1..40), limit in 1..30usize) {
            let lines = |chunks: &mut dyn Iterator<Item = &[u8]>| {
                let mut splitter = Splitter::default();
                let mut lines: Vec<Vec<u8>> = Vec::new();
                let mut sink = |piece: Piece<'_>| match piece {
                    Piece::Lines(part) => lines.extend(part.split_inclusive(|b| *b == b'\n').map(<[u8]>::to_vec)),
                    Piece::Open(part) => lines.push(part.to_vec()),
                };
                for chunk in chunks {
                    splitter.feed(chunk, limit, &mut sink);
                }
                splitter.finish(&mut sink);
                lines
            };
            let whole = lines(&mut std::iter::once(&text[..]));
            let mut rest = &text[..];
            let mut parts = Vec::new();
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (part, after) = rest.split_at((*cut).min(rest.len()));
                parts.push(part);
                rest = after;
            }
            prop_assert_eq!(lines(&mut parts.into_iter()), whole);
        }
    }

    #[test]
    fn lines_are_cut_between_characters() {
        let mut pieces = Vec::new();
        Splitter::default().feed("aé€😀b\n".as_bytes(), 4, &mut |piece| match piece {
            Piece::Lines(part) | Piece::Open(part) => pieces.push(String::from_utf8(part.to_vec()).unwrap()),
        });
        assert_eq!(pieces, ["aé", "€", "😀", "b\n"]);
    }

    #[test]
    fn a_line_as_long_as_the_limit_is_whole() {
        let mut pieces = Vec::new();
        let mut splitter = Splitter::default();
        let mut sink = |piece: Piece<'_>| match piece {
            Piece::Lines(part) | Piece::Open(part) => pieces.push(part.to_vec()),
        };
        splitter.feed(b"abcd\nab", 4, &mut sink);
        splitter.feed(b"cd", 4, &mut sink);
        splitter.feed(b"\n", 4, &mut sink);
        assert_eq!(pieces, [b"abcd\n", b"abcd\n"]);
    }

    #[test]
    fn the_beginning_of_a_character_waits() {
        let mut pieces = Vec::new();
        let mut splitter = Splitter::default();
        let mut sink = |piece: Piece<'_>| match piece {
            Piece::Lines(part) | Piece::Open(part) => pieces.push(part.to_vec()),
        };
        splitter.feed(b"50 \xe2\x82", 100, &mut sink);
        splitter.flush(&mut sink);
        splitter.feed(b"\xac\n", 100, &mut sink);
        assert_eq!(pieces, [b"50 ".to_vec(), "€\n".as_bytes().to_vec()]);
    }
}

//! Replaces declared secrets before anything leaves memory, also those that are cut across reads.

use std::sync::Arc;

use aho_corasick::AhoCorasick;

/// What stands in the place of a secret.
const MASK: &[u8] = b"***";
/// Shorter lines of a secret of several lines are not masked by themselves: they would be found everywhere.
const SHORTEST_LINE: usize = 8;

/// The secrets. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Secrets(Arc<Patterns>);

struct Patterns {
    search: AhoCorasick,
    texts: Vec<Vec<u8>>,
}

impl Secrets {
    /// Each value, without white space at its ends, and each longer line of a value of several lines. `None`: there is
    /// nothing to mask.
    ///
    /// # Errors
    /// When the secrets are too large to search for.
    pub(crate) fn new(values: impl IntoIterator<Item = Vec<u8>>) -> Result<Option<Self>, String> {
        let mut texts = Vec::new();
        for value in values {
            let value = value.trim_ascii();
            let lines = value.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
            texts.extend(lines.filter(|line| line.len() >= SHORTEST_LINE).map(<[u8]>::to_vec));
            texts.push(value.to_vec());
        }
        texts.retain(|text| !text.is_empty());
        texts.sort();
        texts.dedup();
        if texts.is_empty() {
            return Ok(None);
        }
        let search = AhoCorasick::new(&texts).map_err(|error| error.to_string())?;
        Ok(Some(Secrets(Arc::new(Patterns { search, texts }))))
    }
}

/// Masks one stream. What may be the beginning of a secret is held back until the next bytes, or the end, tell.
pub(crate) struct Masker {
    secrets: Secrets,
    held: Vec<u8>,
    /// So many bytes at the front of `held` belong to a secret whose mask was given out already.
    covered: usize,
}

impl Masker {
    pub(crate) fn new(secrets: Secrets) -> Self {
        Masker { secrets, held: Vec::new(), covered: 0 }
    }

    /// Takes what was read and appends to `out` what can be given out.
    pub(crate) fn feed(&mut self, input: &[u8], out: &mut Vec<u8>) {
        self.held.extend_from_slice(input);
        let safe = self.held.len() - self.open_suffix();
        self.give_out(safe, out);
    }

    /// Appends what is left: the beginning of a secret is none.
    pub(crate) fn finish(&mut self, out: &mut Vec<u8>) {
        self.give_out(self.held.len(), out);
    }

    /// Length of the longest end of `held` that is a beginning of a secret, but not all of it.
    fn open_suffix(&self) -> usize {
        let longest = |text: &Vec<u8>| {
            let most = (text.len() - 1).min(self.held.len());
            (1..=most).rev().find(|length| self.held.ends_with(&text[..*length])).unwrap_or(0)
        };
        self.secrets.0.texts.iter().map(longest).max().unwrap_or(0)
    }

    /// Gives out the first `safe` bytes with all secrets that begin in them masked; overlapping ones by one mask.
    fn give_out(&mut self, safe: usize, out: &mut Vec<u8>) {
        let mut spans: Vec<(usize, usize)> = Vec::new();
        let found = self.secrets.0.search.find_overlapping_iter(&self.held);
        spans.extend(found.map(|found| (found.start(), found.end())).filter(|(start, _)| *start < safe));
        spans.sort_unstable();
        // Everything before has been given out; up to here, as a mask.
        let mut masked_to = self.covered;
        let mut plain_from = self.covered;
        for (start, end) in spans {
            if start >= masked_to {
                out.extend_from_slice(&self.held[plain_from..start]);
                out.extend_from_slice(MASK);
            }
            masked_to = masked_to.max(end);
            plain_from = masked_to;
        }
        if plain_from < safe {
            out.extend_from_slice(&self.held[plain_from..safe]);
        }
        self.covered = masked_to.saturating_sub(safe);
        self.held.drain(..safe);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn masked(secrets: &[&str], reads: &[&[u8]]) -> Vec<u8> {
        let secrets = Secrets::new(secrets.iter().map(|text| text.as_bytes().to_vec())).unwrap().unwrap();
        let mut masker = Masker::new(secrets);
        let mut out = Vec::new();
        for read in reads {
            masker.feed(read, &mut out);
        }
        masker.finish(&mut out);
        out
    }

    #[test]
    fn whole_cut_overlapping_and_nested() {
        assert_eq!(masked(&["hunter2"], &[b"pw=hunter2\n"]), b"pw=***\n");
        assert_eq!(masked(&["hunter2"], &[b"pw=hun", b"te", b"r2\n"]), b"pw=***\n");
        assert_eq!(masked(&["hunter2"], &[b"pw=hun", b"ter3\n"]), b"pw=hunter3\n");
        assert_eq!(masked(&["abc", "abcdef"], &[b"xabc", b"def!"]), b"x***!");
        assert_eq!(masked(&["abc", "bcd"], &[b"ab", b"c", b"d."]), b"***.");
        assert_eq!(masked(&["aa"], &[b"aaa", b"aaaa b"]), b"*** b");
        assert_eq!(masked(&["ab"], &[b"abab"]), b"******");
        assert_eq!(masked(&["end"], &[b"the en"]), b"the en");
    }

    #[test]
    fn lines_of_a_secret_are_masked_too() {
        let key = "-----BEGIN KEY-----\nMIIEvQIBADANBg\nab==\n-----END KEY-----\n";
        assert_eq!(masked(&[key], &[key.as_bytes()]), b"***\n");
        assert_eq!(masked(&[key], &[b"line: MIIEvQIBADANBg ab=="]), b"line: *** ab==");
    }

    #[test]
    fn nothing_to_mask() {
        assert!(Secrets::new([b"".to_vec(), b" \n".to_vec()]).unwrap().is_none());
    }

    proptest! {
        #[test]
        fn how_it_was_read_does_not_matter(
            secrets in prop::collection::vec("[ab]{1,4}", 1..4),
            text in "[abc]{0,60}",
            cuts in prop::collection::vec(1..6usize, 1..20),
        ) {
            let names: Vec<&str> = secrets.iter().map(String::as_str).collect();
            let whole = masked(&names, &[text.as_bytes()]);
            let mut rest = text.as_bytes();
            let mut parts = Vec::new();
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (part, after) = rest.split_at((*cut).min(rest.len()));
                parts.push(part);
                rest = after;
            }
            prop_assert_eq!(&masked(&names, &parts), &whole);
            for secret in &names {
                prop_assert!(!String::from_utf8(whole.clone()).unwrap().contains(secret));
            }
            // What is no part of a secret is there.
            let c = |bytes: &[u8]| bytes.iter().filter(|byte| **byte == b'c').count();
            prop_assert_eq!(c(&whole), c(text.as_bytes()));
        }
    }
}

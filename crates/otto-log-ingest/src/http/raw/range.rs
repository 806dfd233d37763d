//! `Range` and `If-Range`, RFC 9110 sections 13.1.5 and 14.

use http::HeaderValue;

/// Bytes from `start` to before `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) start: u64,
    pub(super) end: u64,
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// No range, or one that this server ignores as it may: several, another unit, bad syntax.
    Whole,
    Part(Span),
    Unsatisfiable,
}

/// Whether a range counts: there is no `If-Range`, or it names what is here now. A date never does.
pub(super) fn holds(if_range: Option<&HeaderValue>, tag: &str) -> bool {
    if_range.is_none_or(|value| value.as_bytes() == tag.as_bytes())
}

/// Reads `Range` against a length.
pub(super) fn ask(range: Option<&HeaderValue>, length: u64) -> Asked {
    range.and_then(|range| parse(range.to_str().ok()?, length)).unwrap_or(Asked::Whole)
}

fn parse(range: &str, length: u64) -> Option<Asked> {
    let (unit, set) = range.split_once('=')?;
    let (first, last) = set.trim().split_once('-')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return None;
    }
    let (first, last) = (number(first)?, number(last)?);
    Some(match (first, last) {
        (None, None) => return None,
        (None, Some(0)) => Asked::Unsatisfiable,
        (None, Some(_)) if length == 0 => Asked::Unsatisfiable,
        (None, Some(suffix)) => Asked::Part(Span { start: length.saturating_sub(suffix), end: length }),
        (Some(first), Some(last)) if last < first => return None,
        (Some(first), _) if first >= length => Asked::Unsatisfiable,
        (Some(first), last) => {
            Asked::Part(Span { start: first, end: last.map_or(length, |last| last.saturating_add(1).min(length)) })
        }
    })
}

/// `Some(None)`: empty. `None`: not a number. One too large for 64 bits lies after any end.
fn number(text: &str) -> Option<Option<u64>> {
    let text = text.trim();
    if text.is_empty() {
        return Some(None);
    }
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| Some(text.parse().unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        let part = |start, end| Asked::Part(Span { start, end });
        for (range, length, expected) in [
            ("bytes=0-0", 10, part(0, 1)),
            ("bytes=0-", 10, part(0, 10)),
            ("bytes=3-5", 10, part(3, 6)),
            ("Bytes = 3-99", 10, part(3, 10)),
            ("bytes=-4", 10, part(6, 10)),
            ("bytes=-40", 10, part(0, 10)),
            ("bytes=9-99999999999999999999999", 10, part(9, 10)),
            ("bytes=10-", 10, Asked::Unsatisfiable),
            ("bytes=-0", 10, Asked::Unsatisfiable),
            ("bytes=0-", 0, Asked::Unsatisfiable),
            ("bytes=-1", 0, Asked::Unsatisfiable),
            ("bytes=5-3", 10, Asked::Whole),
            ("bytes=0-1,4-5", 10, Asked::Whole),
            ("lines=0-1", 10, Asked::Whole),
            ("bytes=-", 10, Asked::Whole),
            ("bytes=a-b", 10, Asked::Whole),
            ("", 10, Asked::Whole),
        ] {
            let value = HeaderValue::from_str(range).unwrap();
            assert_eq!(ask(Some(&value), length), expected, "{range} of {length}");
        }
        assert_eq!(ask(None, 10), Asked::Whole);
    }

    #[test]
    fn if_range_wants_the_same_tag() {
        assert!(holds(None, "\"a\""));
        assert!(holds(Some(&HeaderValue::from_static("\"a\"")), "\"a\""));
        assert!(!holds(Some(&HeaderValue::from_static("\"b\"")), "\"a\""));
        assert!(!holds(Some(&HeaderValue::from_static("W/\"a\"")), "\"a\""));
        assert!(!holds(Some(&HeaderValue::from_static("Wed, 21 Oct 2015 07:28:00 GMT")), "\"a\""));
    }
}

//! A place in the logs of a task: of each run the first sequence that lies after it. Opaque to clients.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use otto_log_store::RunId;
use xxhash_rust::xxh3::xxh3_64;

/// Layout of the text form.
const VERSION: u8 = 1;
/// Most runs in one position.
const MAX_RUNS: u64 = 1 << 20;

/// A place in the logs of a task.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Position {
    /// A run that is not here lies after the position as a whole.
    pub(super) runs: BTreeMap<RunId, u64>,
}

impl Position {
    /// Writes it for a client. It fits no other task.
    pub(super) fn encode(&self, task_id: &str) -> String {
        let mut bytes = vec![VERSION];
        bytes.extend_from_slice(&mark(task_id));
        put(&mut bytes, self.runs.len() as u64);
        let mut last = 0;
        for (run, sequence) in &self.runs {
            put(&mut bytes, run.0 - last);
            put(&mut bytes, *sequence);
            last = run.0;
        }
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Reads what [`encode`](Self::encode) wrote; `None`: it is something else, or of another task.
    pub(super) fn decode(text: &str, task_id: &str) -> Option<Self> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let mut rest = bytes.strip_prefix(&[VERSION])?.strip_prefix(&mark(task_id))?;
        let count = take(&mut rest).filter(|count| *count <= MAX_RUNS)?;
        let mut runs = BTreeMap::new();
        let mut last = 0u64;
        for _ in 0..count {
            last = last.checked_add(take(&mut rest)?)?;
            runs.insert(RunId(last), take(&mut rest)?);
        }
        rest.is_empty().then_some(Self { runs })
    }
}

fn mark(task_id: &str) -> [u8; 4] {
    (xxh3_64(task_id.as_bytes()) as u32).to_be_bytes()
}

/// LEB128.
fn put(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

fn take(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        let bits = u64::from(byte & 0x7f);
        if shift == 63 && bits > 1 {
            return None;
        }
        value |= bits << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_position_survives_its_text(runs in prop::collection::btree_map(any::<u64>().prop_map(RunId), any::<u64>(), 0..20)) {
            let position = Position { runs };
            let text = position.encode("task");
            prop_assert_eq!(Position::decode(&text, "task"), Some(position));
            prop_assert_eq!(Position::decode(&text, "other"), None);
        }

        #[test]
        fn garbage_is_refused(text in "[A-Za-z0-9_-]{0,40}") {
            prop_assert_eq!(Position::decode(&text, "task"), None);
        }
    }
}

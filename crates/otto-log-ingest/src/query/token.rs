use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use otto_log_store::{RunId, RunKey};
use prost::encoding::{decode_varint, encode_varint};
use xxhash_rust::xxh3::xxh3_64;

const VERSION: u8 = 1;

/// Where a reading is in one run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) run: RunId,
    /// Of the run's key, so that a run of another store is not taken for this one.
    pub(crate) check: u16,
    /// Next sequence to show; 0: the run was shown to its end.
    pub(crate) next: u64,
}

/// Where a reading is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Token {
    /// Number of the next event to show.
    pub(crate) event: u64,
    /// Runs below it are left out.
    pub(crate) floor: u64,
    /// By rising run. A run that is not in here is shown from its start.
    pub(crate) positions: Vec<Position>,
}

/// A few bits that tell a run from others of the same number.
pub(crate) fn check_of(key: &RunKey) -> u16 {
    (xxh3_64(format!("{}\0{}\0{}", key.task_id, key.worker_id, key.run_id).as_bytes()) & 0xffff) as u16
}

fn question(task_id: &str, worker_id: &str, run_id: &str) -> [u8; 4] {
    let hash = xxh3_64(format!("{task_id}\0{worker_id}\0{run_id}").as_bytes()).to_le_bytes();
    [hash[0], hash[1], hash[2], hash[3]]
}

impl Token {
    /// It was given by a store that has one of these runs, as far as can be told.
    pub(crate) fn fits(&self, runs: &[otto_log_store::RunInfo]) -> bool {
        self.positions.is_empty() || runs.iter().any(|run| self.next_of(run.id, &run.key).is_some())
    }

    pub(crate) fn encode(&self, task_id: &str, worker_id: &str, run_id: &str) -> String {
        let mut bytes = Vec::with_capacity(16 + self.positions.len() * 8);
        bytes.push(VERSION);
        bytes.extend_from_slice(&question(task_id, worker_id, run_id));
        encode_varint(self.event, &mut bytes);
        encode_varint(self.floor, &mut bytes);
        let mut last = 0;
        for position in &self.positions {
            encode_varint(position.run.0.wrapping_sub(last), &mut bytes);
            bytes.extend_from_slice(&position.check.to_le_bytes());
            encode_varint(position.next, &mut bytes);
            last = position.run.0;
        }
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// `None` if it is not one of ours, or one of another question.
    pub(crate) fn decode(text: &str, task_id: &str, worker_id: &str, run_id: &str) -> Option<Self> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (version, rest) = bytes.split_first()?;
        let (asked, mut rest) = rest.split_first_chunk::<4>()?;
        if *version != VERSION || *asked != question(task_id, worker_id, run_id) {
            return None;
        }
        let mut token = Self {
            event: decode_varint(&mut rest).ok()?,
            floor: decode_varint(&mut rest).ok()?,
            positions: Vec::new(),
        };
        let mut last = 0u64;
        while !rest.is_empty() {
            let delta = decode_varint(&mut rest).ok()?;
            if delta == 0 && !token.positions.is_empty() {
                return None;
            }
            last = last.checked_add(delta)?;
            let (check, after) = rest.split_first_chunk::<2>()?;
            rest = after;
            let next = decode_varint(&mut rest).ok()?;
            token.positions.push(Position { run: RunId(last), check: u16::from_le_bytes(*check), next });
        }
        Some(token)
    }

    /// Next sequence to show of a run; `None` if the token does not know it.
    pub(crate) fn next_of(&self, run: RunId, key: &RunKey) -> Option<u64> {
        let index = self.positions.binary_search_by_key(&run, |position| position.run).ok()?;
        let position = self.positions[index];
        (position.check == check_of(key)).then_some(position.next)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn comes_back(event in any::<u64>(), floor in any::<u64>(), runs in prop::collection::btree_map(any::<u64>(), (any::<u16>(), any::<u64>()), 0..20)) {
            let positions = runs.iter().map(|(run, (check, next))| Position { run: RunId(*run), check: *check, next: *next }).collect();
            let token = Token { event, floor, positions };
            let text = token.encode("t", "w", "");
            prop_assert_eq!(Token::decode(&text, "t", "w", ""), Some(token));
            prop_assert_eq!(Token::decode(&text, "t", "", "w"), None);
        }

        #[test]
        fn garbage_is_refused_without_a_panic(text in "[A-Za-z0-9_-]{0,60}", bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = Token::decode(&text, "t", "w", "");
            let mut ours = vec![VERSION];
            ours.extend_from_slice(&question("t", "w", ""));
            ours.extend_from_slice(&bytes);
            if let Some(token) = Token::decode(&URL_SAFE_NO_PAD.encode(&ours), "t", "w", "") {
                prop_assert!(token.positions.is_sorted_by(|a, b| a.run < b.run));
            }
        }
    }
}

//! How many bytes a run's lines have, and where in them a sequence is. The store keeps blocks as they came and does not know;
//! so a run is read through once, and what was learned is kept for the next request, which goes on where this one ended.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use otto_log_store::{Item, ReadError, RunId, RunInfo, Store};
use otto_proto::v1::LogSource;

/// A place is remembered every so many bytes.
const STEP: u64 = 4 << 20;
/// Runs remembered.
const KEEP: usize = 256;
/// Places remembered of one run; then every other one is forgotten.
const MOST_PLACES: usize = 1024;

/// A run measured up to a sequence.
#[derive(Clone, Debug)]
pub(super) struct Measured {
    /// Bytes of the lines before `end_sequence`.
    pub(super) bytes: u64,
    /// First sequence not measured.
    pub(super) end_sequence: u64,
    /// (offset, sequence of the line that begins there), rising.
    places: Vec<(u64, u64)>,
    step: u64,
    /// What retention and damage had taken when this was measured: another figure, another measure.
    missing_lines: u64,
}

impl Measured {
    fn new(missing_lines: u64) -> Self {
        Self { bytes: 0, end_sequence: 1, places: vec![(0, 1)], step: STEP, missing_lines }
    }

    /// The last remembered place at or before an offset.
    pub(super) fn before(&self, offset: u64) -> (u64, u64) {
        let after = self.places.partition_point(|(place, _)| *place <= offset);
        self.places.get(after.saturating_sub(1)).copied().unwrap_or((0, 1))
    }

    fn add(&mut self, bytes: u64, end_sequence: u64) {
        self.bytes += bytes;
        self.end_sequence = end_sequence;
        if self.places.last().is_none_or(|(place, _)| self.bytes >= place + self.step) {
            self.places.push((self.bytes, end_sequence));
        }
        if self.places.len() > MOST_PLACES {
            let mut index = 0;
            self.places.retain(|_| {
                index += 1;
                index % 2 == 1
            });
            self.step *= 2;
        }
    }
}

type Key = (RunId, Option<i32>);

/// What was measured before. Bounded: [`KEEP`] runs, the ones used last.
#[derive(Debug, Default)]
pub(in crate::http) struct Measures {
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// Rises with every use.
    clock: u64,
    /// When each was used last, and what is known of it.
    runs: HashMap<Key, (u64, Arc<Measured>)>,
}

impl Measures {
    /// Measures a run up to what `run` says is stored.
    pub(super) async fn measure(
        &self,
        store: &Store,
        run: &RunInfo,
        source: Option<LogSource>,
    ) -> Result<Arc<Measured>, ReadError> {
        let key = (run.id, source.map(|source| source as i32));
        let known = self.recall(&key).filter(|known| known.missing_lines == run.missing_lines);
        if let Some(known) = &known
            && known.end_sequence >= run.expected
        {
            return Ok(known.clone());
        }
        let mut measured = known.map_or_else(|| Measured::new(run.missing_lines), |known| (*known).clone());
        let mut cursor = super::open(store, run, source, measured.end_sequence);
        while let Some(item) = cursor.next().await? {
            match item {
                Item::Block(block) => {
                    let decoded = &block.decoded;
                    if block.from >= run.expected {
                        break;
                    }
                    let end = (decoded.first_sequence() + u64::from(decoded.line_count())).min(run.expected);
                    measured.add(super::text_of(&block, source, end).len() as u64, end);
                }
                Item::Gap(_) => {}
                Item::Finish(_) => break,
            }
            // A long run is measured without holding up what else this thread has to do.
            tokio::task::yield_now().await;
        }
        measured.end_sequence = run.expected.max(measured.end_sequence);
        let measured = Arc::new(measured);
        self.remember(key, measured.clone());
        Ok(measured)
    }

    fn recall(&self, key: &Key) -> Option<Arc<Measured>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.clock += 1;
        let now = known.clock;
        let (used, measured) = known.runs.get_mut(key)?;
        *used = now;
        Some(measured.clone())
    }

    fn remember(&self, key: Key, measured: Arc<Measured>) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let now = known.clock;
        known.runs.insert(key, (now, measured));
        if known.runs.len() > KEEP
            && let Some(oldest) = known.runs.iter().min_by_key(|(_, (used, _))| *used).map(|(key, _)| *key)
        {
            known.runs.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_found_and_stay_bounded() {
        let mut measured = Measured::new(0);
        for block in 1..=10_000u64 {
            measured.add(STEP / 2, block * 10 + 1);
        }
        assert!(measured.places.len() <= MOST_PLACES);
        for offset in [0, 1, STEP, measured.bytes / 3, measured.bytes] {
            let (place, sequence) = measured.before(offset);
            assert!(place <= offset && offset - place <= measured.step + STEP);
            assert_eq!(place / (STEP / 2), (sequence - 1) / 10);
        }
    }
}

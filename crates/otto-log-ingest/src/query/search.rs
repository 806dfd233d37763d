use std::sync::Arc;

use otto_log_store::{Block, ReadError};
use tokio::sync::Semaphore;

use super::request::Matcher;

/// Looking at a block costs about a nanosecond for each byte searched, and so many for each line.
const LINE_COST: usize = 8;
/// Costlier looks are taken where they hold up no stream.
const INLINE_COST: usize = 128 << 10;

/// Looks at blocks for wanted lines, without holding up the threads that serve writers. Cheap to clone.
#[derive(Clone)]
pub(super) struct Search {
    matcher: Arc<Matcher>,
    /// Costly looks at the same time, of all readings.
    turns: Arc<Semaphore>,
}

impl Search {
    pub(super) fn new(matcher: Arc<Matcher>, turns: Arc<Semaphore>) -> Self {
        Self { matcher, turns }
    }

    pub(super) fn matcher(&self) -> &Matcher {
        &self.matcher
    }

    pub(super) async fn look<T: Send + 'static>(
        &self,
        block: Block,
        look: impl FnOnce(Block, &Matcher) -> T + Send + 'static,
    ) -> Result<T, ReadError> {
        let searched = if self.matcher.searches() { block.decoded.text().len() } else { 0 };
        if searched + LINE_COST * block.decoded.line_count() as usize <= INLINE_COST {
            return Ok(look(block, &self.matcher));
        }
        // The semaphore is never closed.
        let turn = self.turns.clone().acquire_owned().await;
        let matcher = self.matcher.clone();
        let looking = tokio::task::spawn_blocking(move || {
            let found = look(block, &matcher);
            drop(turn);
            found
        });
        looking.await.map_err(|error| ReadError::Io(error.to_string()))
    }
}

//! What waits until all before it is on disk.

use std::time::Instant;

use otto_log_store::{Record, StoreError};
use otto_proto::v1::LogGap;

use super::Batches;
use crate::session::End;
use crate::session::entries::sleep_until;
use crate::session::writer::{Submission, What};

impl Batches<'_> {
    /// A gap of unknown end does not move the run on. So its number alone does not tell that it is a duplicate; and the
    /// store would take what comes behind it without it, so nothing else is under way while it is.
    pub(super) async fn on_open_gap(&mut self, gap: LogGap) -> Result<(), End> {
        let first = gap.first_sequence;
        if !self.is_stored(first).await? {
            return Ok(());
        }
        if let Ok(Some(run)) = self.context.store.run(self.run.id).await {
            self.run = run;
        }
        if self.run.open_gap && self.run.expected == first {
            self.owed = None;
            self.duplicate(0);
            return Ok(());
        }
        self.owed = Some(gap.clone());
        let bytes = 256 + gap.message.len();
        self.submit(Submission { first, end: first, record: Record::Gap(gap), what: What::Gap, bytes })?;
        if self.is_stored(first).await? {
            self.owed = None;
        }
        Ok(())
    }

    /// Before anything else is stored: an open gap that the store did not take before. Whether it is stored now; if not, the
    /// client was told to send again, after having sent up to before `end`.
    pub(super) async fn pay_owed(&mut self, end: u64) -> Result<bool, End> {
        let Some(gap) = self.owed.clone() else { return Ok(true) };
        self.on_open_gap(gap).await?;
        if self.owed.is_some() {
            self.holes.told(end);
        }
        Ok(self.owed.is_none())
    }

    /// Waits until all that was given to the writer is on disk; `false` if some of it was not taken, which the client was
    /// told, after having sent up to before `end`.
    pub(super) async fn is_stored(&mut self, end: u64) -> Result<bool, End> {
        let before = self.refusals;
        while !self.writer.is_idle() {
            if self.writer.pending() > 0 {
                let settled = self.writer.settled().await;
                self.on_settled(settled).await?;
                continue;
            }
            let patience = self.patience();
            tokio::select! {
                () = self.context.store.ready() => self.writer.pump(),
                () = sleep_until(patience), if patience.is_some() => self.release()?,
            }
        }
        let stored = self.refusals == before;
        if !stored {
            self.holes.told(end);
        }
        Ok(stored)
    }

    /// When what waits for room in the store's queue is given back.
    pub(super) fn patience(&self) -> Option<Instant> {
        // An upload cannot be told to send again: it waits.
        let held = self.writer.held_since().filter(|_| self.outbox.is_some());
        held.map(|since| since + self.context.limits.busy_wait)
    }

    pub(super) fn release(&mut self) -> Result<(), End> {
        match self.writer.release() {
            Some((first, end)) => self.refuse(first, end, StoreError::Busy),
            None => Ok(()),
        }
    }
}

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Memory of all sessions together for what they have received and cannot give to the store yet. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Memory(Arc<Semaphore>);

impl Memory {
    /// So many bytes.
    pub(crate) fn new(bytes: usize) -> Self {
        Self(Arc::new(Semaphore::new(bytes.min(Semaphore::MAX_PERMITS))))
    }

    /// So many bytes until the permit is dropped; `None` if there are not so many.
    pub(crate) fn take(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        self.0.clone().try_acquire_many_owned(u32::try_from(bytes).ok()?).ok()
    }

    /// Whether there are fewer left than so many.
    pub(crate) fn is_below(&self, bytes: usize) -> bool {
        self.0.available_permits() < bytes
    }

    /// Makes `taken` worth so many bytes; `false` if there are not so many, and nothing has changed then.
    pub(crate) fn adjust(&self, taken: &mut Option<OwnedSemaphorePermit>, bytes: usize) -> bool {
        if bytes == 0 {
            *taken = None;
            return true;
        }
        let Some(permit) = taken else {
            *taken = self.take(bytes);
            return taken.is_some();
        };
        let now = permit.num_permits();
        if bytes <= now {
            drop(permit.split(now - bytes));
            return true;
        }
        let Some(more) = self.take(bytes - now) else { return false };
        permit.merge(more);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_is_given_back() {
        let memory = Memory::new(10);
        let (mut first, mut second) = (None, memory.take(4));
        assert!(second.is_some());
        for (bytes, fits) in [(5, true), (7, false), (6, true), (2, true), (6, true)] {
            assert_eq!(memory.adjust(&mut first, bytes), fits, "{bytes}");
        }
        assert!(memory.take(1).is_none());
        assert!(!memory.adjust(&mut second, 5));
        assert!(memory.adjust(&mut first, 0) && first.is_none());
        assert!(memory.adjust(&mut second, 10));
        drop(second);
        assert!(memory.take(10).is_some() && memory.take(11).is_none());
    }
}

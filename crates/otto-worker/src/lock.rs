//! Locks of files.

use std::fs::File;

/// A file whose lock is ours until this is dropped.
pub(crate) struct Locked(File);

impl Locked {
    /// Of a file whose lock was just taken.
    pub(crate) fn new(file: File) -> Self {
        Locked(file)
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        // Not left to the closing: a fork elsewhere may hold a copy of the descriptor for a moment.
        let _ = self.0.unlock();
    }
}

//! The digest a run ends with (`FinishRun.digest`).

use xxhash_rust::xxh3::Xxh3;

/// XXH3-128 over the bytes of all lines of a run, in order. Guards against bugs and bit rot, not against forgery.
#[derive(Clone, Default)]
pub struct Digest(Xxh3);

impl Digest {
    /// The digest of nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds bytes of lines, newlines included.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// 16 bytes, big endian.
    #[must_use]
    pub fn finish(&self) -> [u8; 16] {
        self.0.digest128().to_be_bytes()
    }
}

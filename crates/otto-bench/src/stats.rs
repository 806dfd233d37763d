//! Clocks and quantiles.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Nanoseconds since the Unix epoch.
pub(crate) fn now_nanos() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64)
}

/// Sorted milliseconds.
#[derive(Default)]
pub(crate) struct Sample(Vec<f64>);

impl Sample {
    pub(crate) fn push(&mut self, milliseconds: f64) {
        self.0.push(milliseconds);
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// 0.0 to 1.0.
    pub(crate) fn quantile(&self, q: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len().saturating_sub(1);
        sorted.get((last as f64 * q).round() as usize).copied().unwrap_or(f64::NAN)
    }
}

/// Median of a few figures.
pub(crate) fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}

/// One append of 4 KiB with fdatasync, milliseconds.
pub(crate) fn sync_once(file: &mut File) -> std::io::Result<f64> {
    let start = Instant::now();
    file.write_all(&[b'x'; 4096])?;
    rustix::fs::fdatasync(file.as_fd())?;
    Ok(start.elapsed().as_secs_f64() * 1e3)
}

/// A file in `dir` for [`sync_once`].
pub(crate) fn sync_file(dir: &Path) -> std::io::Result<File> {
    File::options().create(true).append(true).open(dir.join("sync-probe"))
}

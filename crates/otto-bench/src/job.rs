//! The jobs of the benchmarks.

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use crate::stats::now_nanos;

/// Bytes of a line, newline included.
pub(crate) const LINE: usize = 100;
/// Before and after the time in a line.
pub(crate) const MARK: u8 = b'@';

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Appends when its first instruction ran to this file, and ends.
    #[arg(long)]
    mark: Option<PathBuf>,
    /// Prints so many lines as fast as they are taken.
    #[arg(long, default_value_t = 0)]
    lines: u64,
    /// Where it notes when the first line was printed.
    #[arg(long)]
    begun: Option<PathBuf>,
    /// Prints so many lines a second, each with its time.
    #[arg(long, default_value_t = 0)]
    rate: u64,
    #[arg(long, default_value_t = 0)]
    seconds: u64,
}

pub(crate) fn run(options: &Options, begun: u64) -> anyhow::Result<()> {
    if let Some(path) = &options.mark {
        let mut file = File::options().create(true).append(true).open(path)?;
        // One write: many append at the same time.
        file.write_all(format!("{begun}\n").as_bytes())?;
        return Ok(());
    }
    if options.rate > 0 {
        return Ok(paced(options.rate, options.seconds)?);
    }
    Ok(flood(options)?)
}

/// Lines whose digits follow from their number, made in memory first.
fn flood(options: &Options) -> io::Result<()> {
    const PIECE: u64 = 65_536;
    let mut text = Vec::with_capacity(PIECE as usize * LINE);
    for n in 0..PIECE {
        let mut state = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let start = text.len();
        write!(text, "{n:010} ")?;
        while text.len() < start + LINE - 1 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            text.push(b"0123456789abcdef"[(state & 15) as usize]);
        }
        text.push(b'\n');
    }
    if let Some(path) = &options.begun {
        std::fs::write(path, now_nanos().to_string())?;
    }
    let mut out = File::from(rustix::io::dup(rustix::stdio::stdout())?);
    let mut left = options.lines as usize * LINE;
    while left > 0 {
        let piece = &text[..left.min(text.len())];
        for part in piece.chunks(65_536) {
            out.write_all(part)?;
        }
        left -= piece.len();
    }
    Ok(())
}

/// One write a line.
fn paced(rate: u64, seconds: u64) -> io::Result<()> {
    let mut out = File::from(rustix::io::dup(rustix::stdio::stdout())?);
    let start = Instant::now();
    let mut line = [b'.'; LINE];
    line[LINE - 1] = b'\n';
    for n in 0..rate * seconds {
        let due = Duration::from_nanos(n * 1_000_000_000 / rate);
        if let Some(early) = due.checked_sub(start.elapsed()) {
            thread::sleep(early);
        }
        let text = format!("{n:010} {}{}{} ", MARK as char, now_nanos(), MARK as char);
        line[..text.len()].copy_from_slice(text.as_bytes());
        out.write_all(&line)?;
    }
    Ok(())
}

//! `otto demo`: something to look at. The default command of the demo images.

use std::io::{self, Write};
use std::thread;
use std::time::{Duration, Instant};

use crate::args::Demo;
use crate::exit::{Exit, Failure};

pub(crate) fn run(options: &Demo) -> Result<Exit, Failure> {
    let worker = std::env::var("OTTO_JOB_INDEX").unwrap_or_else(|_| "0".to_owned());
    let start = Instant::now();
    for n in 1..=options.lines {
        // Due by its number, not by the line before: pauses do not add up.
        let due = (u128::from(n - 1) * 1_000_000_000).checked_div(options.rate.into()).unwrap_or(0);
        if let Some(early) = Duration::from_nanos(u64::try_from(due).unwrap_or(u64::MAX)).checked_sub(start.elapsed()) {
            thread::sleep(early);
        }
        let of = options.lines;
        match n % 10 {
            0 => writeln!(io::stderr(), "\u{1b}[31mworker {worker}: line {n} of {of}, on stderr\u{1b}[0m")?,
            5 => writeln!(io::stdout(), "\u{1b}[1;32mworker {worker}: line {n} of {of}, in green\u{1b}[0m")?,
            _ => writeln!(io::stdout(), "worker {worker}: line {n} of {of}")?,
        }
    }
    Ok(Exit::Ok)
}

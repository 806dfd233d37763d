//! How fast the store takes blocks, beside what the disk could do: `cargo run --release --example append -p
//! otto-log-store -- [DIRECTORY] [BLOCKS] [LINES PER BLOCK] [RUNS]`.
#![allow(missing_docs)]

use std::error::Error;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use otto_log_store::{From, Options, Record, RunKey, Store, StoreError};
use otto_proto::block::{Attributes, Builder};
use otto_proto::v1::{LogBlock, LogLevel, LogSource};

fn block(first: u64, lines: u64, compress: bool) -> Option<LogBlock> {
    let mut builder = Builder::new();
    for sequence in first..first + lines {
        let text = format!("{sequence:>12} {:0>86}\n", sequence.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let attributes =
            Attributes { time_unix_nanos: sequence as i64, level: LogLevel::Info, source: LogSource::Stdout };
        builder.push(text.as_bytes(), attributes);
    }
    builder.finish(first, compress.then_some(1))
}

fn quantile(sorted: &[Duration], part: f64) -> f64 {
    let at = ((sorted.len() as f64 - 1.0) * part) as usize;
    sorted.get(at).map_or(0.0, |time| time.as_secs_f64() * 1e3)
}

fn resident_mb() -> f64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    text.split(' ').nth(1).and_then(|pages| pages.parse::<f64>().ok()).unwrap_or(0.0) * 4096.0 / 1e6
}

/// Plain write and fdatasync of so many bytes at a time.
fn ceiling(directory: &std::path::Path, bytes: usize, times: usize) -> std::io::Result<(f64, Vec<Duration>)> {
    let path = directory.join("ceiling");
    let mut file = std::fs::File::create(&path)?;
    let data = vec![0x61; bytes];
    let begun = Instant::now();
    let mut took = Vec::new();
    for at in 0..times {
        let one = Instant::now();
        file.write_all_at(&data, (at * bytes) as u64)?;
        file.sync_data()?;
        took.push(one.elapsed());
    }
    let rate = (bytes * times) as f64 / begun.elapsed().as_secs_f64() / 1e6;
    file.flush()?;
    std::fs::remove_file(path)?;
    took.sort();
    Ok((rate, took))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let parent = arguments.next().unwrap_or_else(|| "target".to_owned());
    let mut number = |or: u64| arguments.next().map_or(Ok(or), |text| text.parse());
    let (blocks, lines, runs) = (number(4000)?, number(1000)?, number(4)?);
    let directory = std::path::Path::new(&parent).join(format!("append-{}", std::process::id()));
    std::fs::create_dir_all(&directory)?;

    let store = Store::open(Options::new(directory.join("store")))?;
    println!("idle: {:.1} MB resident", resident_mb());
    many_runs(&store).await?;
    println!("10,000 runs: {:.1} MB resident", resident_mb());
    throughput(&store, blocks, lines, runs).await?;
    latency(&store).await?;
    read_back(&store).await?;
    println!("after: {:.1} MB resident, {:?}", resident_mb(), store.stats());
    store.close().await;

    for bytes in [4 << 10, 1 << 20, 8 << 20] {
        let (rate, took) = ceiling(&directory, bytes, if bytes > 1 << 16 { 40 } else { 400 })?;
        println!(
            "ceiling, write + fdatasync of {:>5} KiB: {rate:8.1} MB/s, p50 {:.2} ms, p99 {:.2} ms",
            bytes >> 10,
            quantile(&took, 0.5),
            quantile(&took, 0.99)
        );
    }
    std::fs::remove_dir_all(&directory)?;
    Ok(())
}

async fn many_runs(store: &Store) -> Result<(), Box<dyn Error>> {
    let template = block(1, 10, false).ok_or("no lines")?;
    for hundred in 0..100 {
        let keys = (0..100).map(|number| RunKey {
            task_id: format!("task-{hundred}"),
            worker_id: format!("otto-task-{hundred}-0123456789-{number}-1"),
            run_id: format!("{hundred:016x}{number:016x}"),
        });
        let keys: Vec<RunKey> = keys.collect();
        for state in futures::future::join_all(keys.iter().map(|key| store.open_run(key, None))).await {
            store.append(state?.id, Record::Block(template.clone())).await?;
        }
    }
    Ok(())
}

async fn throughput(store: &Store, blocks: u64, lines: u64, runs: u64) -> Result<(), Box<dyn Error>> {
    let mut tasks = tokio::task::JoinSet::new();
    let (begun, before) = (Instant::now(), store.stats());
    for number in 0..runs {
        let key = RunKey { task_id: "bench".into(), worker_id: format!("w{number}"), run_id: "r".into() };
        let run = store.open_run(&key, None).await?.id;
        let store = store.clone();
        // The same lines in every block: what is measured is the store, not the making of lines.
        let template = block(1, lines, false).ok_or("no lines")?;
        tasks.spawn(async move {
            let mut under_way = std::collections::VecDeque::new();
            for at in 0..blocks / runs {
                let mut block = template.clone();
                block.first_sequence = 1 + at * lines;
                loop {
                    let mut append = store.append(run, Record::Block(block.clone()));
                    match futures::poll!(&mut append) {
                        std::task::Poll::Ready(Err(StoreError::Busy)) => store.ready().await,
                        std::task::Poll::Ready(result) => {
                            result?;
                            break;
                        }
                        std::task::Poll::Pending => break under_way.push_back(append),
                    }
                }
                if under_way.len() > 16
                    && let Some(first) = under_way.pop_front()
                {
                    first.await?;
                }
            }
            for append in under_way {
                append.await?;
            }
            Ok::<_, StoreError>(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    let (took, after) = (begun.elapsed().as_secs_f64(), store.stats());
    let bytes = after.written_bytes - before.written_bytes;
    println!(
        "store: {blocks} blocks of {lines} lines, {runs} runs: {:8.1} MB/s, {:.0} blocks/s, {:.2} M lines/s, {} commits, fdatasync {:.0} % of the time",
        bytes as f64 / took / 1e6,
        blocks as f64 / took,
        (blocks * lines) as f64 / took / 1e6,
        after.commits - before.commits,
        (after.sync_nanos - before.sync_nanos) as f64 / took / 1e7,
    );
    Ok(())
}

/// 10,000 lines a second in blocks of 20, from append to a reader that follows.
async fn latency(store: &Store) -> Result<(), Box<dyn Error>> {
    let key = RunKey { task_id: "bench".into(), worker_id: "latency".into(), run_id: "r".into() };
    let run = store.open_run(&key, None).await?.id;
    const BLOCKS: u64 = 2000;
    let mut cursor = store.cursor(run, From::Sequence(1));
    let reader = tokio::spawn(async move {
        let mut seen = Vec::new();
        while seen.len() < BLOCKS as usize {
            while let Ok(Some(item)) = cursor.next().await {
                // A reader that lags may meet blocks that were merged meanwhile.
                if let otto_log_store::Item::Block(block) = item {
                    for _ in 0..block.decoded.line_count() / 20 {
                        seen.push(Instant::now());
                    }
                }
            }
            if seen.len() < BLOCKS as usize {
                cursor.changed().await;
            }
        }
        seen
    });
    let mut appends = tokio::task::JoinSet::new();
    let mut sent = Vec::new();
    let begun = Instant::now();
    for at in 0..BLOCKS {
        let Some(block) = block(1 + at * 20, 20, false) else { break };
        tokio::time::sleep_until((begun + Duration::from_millis(2) * at as u32).into()).await;
        sent.push(Instant::now());
        let append = store.append(run, Record::Block(block));
        appends.spawn(async move { append.await.map(|_| (at, Instant::now())) });
    }
    let mut acknowledged = Vec::new();
    while let Some(done) = appends.join_next().await {
        let (at, when) = done??;
        acknowledged.push(when - sent[at as usize]);
    }
    let mut seen: Vec<Duration> = reader.await?.into_iter().zip(&sent).map(|(when, sent)| when - *sent).collect();
    acknowledged.sort();
    seen.sort();
    for (what, times) in [("acknowledged", &acknowledged), ("read", &seen)] {
        println!(
            "10,000 lines/s, {what}: p50 {:.2} ms, p99 {:.2} ms, max {:.2} ms",
            quantile(times, 0.5),
            quantile(times, 0.99),
            quantile(times, 1.0)
        );
    }
    Ok(())
}

async fn read_back(store: &Store) -> Result<(), Box<dyn Error>> {
    let begun = Instant::now();
    let (mut lines, mut bytes) = (0u64, 0u64);
    for run in store.runs("bench").await? {
        let mut cursor = store.cursor(run.id, From::Sequence(1));
        while let Some(item) = cursor.next().await? {
            if let otto_log_store::Item::Block(block) = item {
                lines += u64::from(block.decoded.line_count());
                bytes += block.decoded.text().len() as u64;
            }
        }
    }
    let took = begun.elapsed().as_secs_f64();
    println!("read: {:.1} MB/s, {:.2} M lines/s", bytes as f64 / took / 1e6, lines as f64 / took / 1e6);
    Ok(())
}

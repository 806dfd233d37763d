//! A child process appends and prints what was acknowledged, and is killed at any moment.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use otto_log_store::{From, Options, Record, Store};

use crate::support::*;

const DIRECTORY: &str = "OTTO_LOG_STORE_TEST_DIR";
const RUNS: u64 = 8;

fn child_options(directory: &std::path::Path) -> Options {
    Options { merge: true, segment_bytes: 256 << 10, ..options(directory) }
}

/// Not a test by itself: appends to several runs until it is killed.
#[tokio::test]
#[ignore = "run by the test below"]
async fn child() {
    let Some(directory) = std::env::var_os(DIRECTORY) else { return };
    let store = Store::open(child_options(directory.as_ref())).unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for seed in 0..RUNS {
        let store = store.clone();
        tasks.spawn(async move {
            let state = store.open_run(&key("t", &format!("w{seed}")), None).await.unwrap();
            let mut expected = state.expected;
            loop {
                // Two under way at once; sizes from one line to many.
                let lines = [1 + expected % 5, 1 + (expected * 7) % 120];
                let first = store.append(state.id, Record::Block(block(seed, expected, lines[0])));
                let second = store.append(state.id, Record::Block(block(seed, expected + lines[0], lines[1])));
                for append in [first, second] {
                    expected = append.await.unwrap();
                    // One write per line, so that a line is whole or absent.
                    let line = format!("\nack {seed} {expected}\n");
                    std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
                }
            }
        });
    }
    tasks.join_next().await;
}

#[tokio::test]
async fn what_was_acknowledged_outlives_kill_9() {
    let directory = tempfile::tempdir().unwrap();
    let mut acknowledged: HashMap<u64, u64> = HashMap::new();
    for round in 0..12u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "kill::child", "--ignored", "--nocapture"])
            .env(DIRECTORY, directory.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut acks = 0;
        let mut text = String::new();
        // After a number of acknowledgements that differs each time, in the midst of the next ones.
        while acks < 20 + round * 37 {
            text.clear();
            assert!(output.read_line(&mut text).unwrap() > 0, "the child ended by itself");
            acks += u64::from(note(&text, &mut acknowledged));
        }
        std::thread::sleep(Duration::from_micros(round * 731 % 3000));
        child.kill().unwrap();
        child.wait().unwrap();
        for text in output.lines() {
            note(&text.unwrap(), &mut acknowledged);
        }
        let store = Store::open(child_options(directory.path())).unwrap();
        for (seed, end) in &acknowledged {
            let state = store.open_run(&key("t", &format!("w{seed}")), None).await.unwrap();
            assert!(!state.created && state.expected >= *end, "round {round}: {state:?}, acknowledged {end}");
            let seen = read(&store, state.id, From::Sequence(1)).await;
            seen.check(*seed, 1, state.expected);
            assert_eq!(seen.gaps, [], "round {round}");
        }
        assert_eq!(store.stats().damaged, 0);
    }
    assert_eq!(acknowledged.len() as u64, RUNS);
    std::fs::remove_file(directory.path().join("index.redb")).unwrap();
    let store = Store::open(child_options(directory.path())).unwrap();
    for (seed, end) in acknowledged {
        let state = store.open_run(&key("t", &format!("w{seed}")), None).await.unwrap();
        assert!(state.expected >= end);
        let seen = read(&store, state.id, From::Sequence(1)).await;
        seen.check(seed, 1, state.expected);
        assert_eq!(seen.gaps, []);
        assert_eq!(store.run(state.id).await.unwrap().unwrap().lines, state.expected - 1);
    }
}

fn note(text: &str, acknowledged: &mut HashMap<u64, u64>) -> bool {
    let mut words = text.split_whitespace();
    let (Some("ack"), Some(seed), Some(end)) = (words.next(), words.next(), words.next()) else { return false };
    acknowledged.insert(seed.parse().unwrap(), end.parse().unwrap());
    true
}

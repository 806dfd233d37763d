//! Kills the process that holds the driver, over and over, while it starts hundreds of workers.

use std::process::{Command, Stdio};

use futures::stream::{FuturesUnordered, StreamExt};

use super::*;

const WORKERS: u32 = 200;
const DIR: &str = "OTTO_TEST_CRASH_DIR";

/// Not a test: what the test below starts and kills. Starts all workers and waits for their ends.
#[tokio::test(flavor = "multi_thread")]
async fn scaler_to_be_killed() {
    let Some(dir) = std::env::var_os(DIR).map(PathBuf::from) else { return };
    let mut driven = Driven::open(options(&dir, ""));
    driven.list().await;
    let script = format!("echo $OTTO_JOB_WORKER_ID >> {}", dir.join("marks").display());
    let mut creations = FuturesUnordered::new();
    for index in 0..WORKERS {
        if creations.len() >= 8 {
            creations.next().await;
        }
        let launch = shell(&key("crash", index), &script);
        let driver = &driven.driver;
        creations.push(async move { driver.create(launch).await.unwrap() });
        // What is told meanwhile; followers wait while nobody listens.
        while let Ok(seen) = driven.changes.try_recv() {
            driven.seen.insert(seen.key.clone(), seen);
        }
    }
    while creations.next().await.is_some() {}
    drop(creations);
    for index in 0..WORKERS {
        driven.ended(&key("crash", index)).await;
    }
    fs::write(dir.join("done"), "").unwrap();
    driven.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_worker_is_started_exactly_once_though_the_scaler_is_killed() {
    let place = Place::new();
    let start = || {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "driver::process::tests::crash::scaler_to_be_killed"])
            .env(DIR, place.dir.path())
            .stdout(Stdio::null())
            .stderr(fs::File::options().create(true).append(true).open(place.path("stderr")).unwrap())
            .spawn()
            .unwrap()
    };
    let begun = || fs::read_dir(place.path("runs")).map_or(0, Iterator::count);
    for part in 1..=8_u32 {
        let mut scaler = start();
        let wanted = (WORKERS * part / 10) as usize;
        otto_testkit::eventually_progressing("more workers have begun", async || {
            let begun = begun();
            (begun >= wanted || place.path("done").exists()).then_some(()).ok_or(begun)
        })
        .await;
        // At another moment each time.
        tokio::time::sleep(Duration::from_millis(u64::from(part * 7 % 5))).await;
        scaler.kill().unwrap();
        scaler.wait().unwrap();
    }
    let mut scaler = start();
    let ended = tokio::task::spawn_blocking(move || scaler.wait()).await.unwrap().unwrap();
    assert!(ended.success() && place.path("done").exists(), "{}", place.text("stderr"));

    let mut started: BTreeMap<String, u32> = BTreeMap::new();
    for line in place.text("marks").lines() {
        *started.entry(line.to_owned()).or_default() += 1;
    }
    let doubled: Vec<_> = started.iter().filter(|(_, times)| **times != 1).collect();
    assert!(doubled.is_empty(), "started more than once: {doubled:?}");
    assert_eq!(started.len(), WORKERS as usize, "{}", place.text("stderr"));
}

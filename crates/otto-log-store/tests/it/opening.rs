use std::process::Command;

use otto_log_store::{From, OpenError, Options, Store};

use crate::support::*;

const DIRECTORY: &str = "OTTO_LOG_STORE_TEST_LOCKED";

/// Not a test by itself: says why it could not open the directory.
#[test]
#[ignore = "run by the test below"]
fn child() {
    let Some(directory) = std::env::var_os(DIRECTORY) else { return };
    match Store::open(options(directory.as_ref())) {
        Ok(_) => println!("\nopened"),
        Err(error) => println!("\nrefused: {error}"),
    }
}

#[tokio::test]
async fn a_directory_belongs_to_one_process() {
    let directory = tempfile::tempdir().unwrap();
    let other = || {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "opening::child", "--ignored", "--nocapture"])
            .env(DIRECTORY, directory.path())
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let store = open(directory.path());
    let run = store.open_run(&key("t", "w"), None).await.unwrap().id;
    let cursor = store.cursor(run, From::Sequence(1));
    let text = other();
    let expected = format!("data directory {}: in use by process {}", directory.path().display(), std::process::id());
    assert!(text.contains(&expected), "{text}");
    assert!(matches!(Store::open(options(directory.path())), Err(OpenError::Locked { .. })));
    store.close().await;
    // A reader that is still there does not hold it.
    assert!(other().contains("opened"));
    drop(cursor);
}

#[test]
fn another_version_and_other_directories_are_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    drop(open(directory.path()));
    std::fs::write(directory.path().join("FORMAT"), "otto-log-store 2\n").unwrap();
    let error = Store::open(options(directory.path())).unwrap_err().to_string();
    assert!(error.contains(&*directory.path().to_string_lossy()), "{error}");
    assert!(error.contains("format is 2") && error.contains("format 1"), "{error}");

    let other = tempfile::tempdir().unwrap();
    std::fs::write(other.path().join("letters.txt"), "dear").unwrap();
    let error = Store::open(options(other.path())).unwrap_err();
    assert!(matches!(&error, OpenError::NotAStore { found, .. } if found == "letters.txt"), "{error}");
    assert_eq!(std::fs::read_dir(other.path()).unwrap().count(), 1);

    let missing = other.path().join("no").join("such");
    let error = Store::open(options(&missing)).unwrap_err().to_string();
    assert!(error.contains(&*missing.to_string_lossy()) && error.contains("No such file"), "{error}");
    let file = other.path().join("letters.txt");
    let error = Store::open(options(&file)).unwrap_err().to_string();
    assert!(error.contains("letters.txt") && error.contains("Not a directory"), "{error}");
    let error = Store::open(Options { segment_bytes: 1, ..options(&missing) }).unwrap_err().to_string();
    assert!(error.contains("segment size"), "{error}");
}

/// As root nothing is forbidden, so another user is asked.
#[test]
fn a_directory_without_permission_is_named() {
    use std::os::unix::fs::PermissionsExt;
    let outer = tempfile::tempdir().unwrap();
    let directory = outer.path().join("store");
    drop(open(&directory));
    std::fs::set_permissions(outer.path(), PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::set_permissions(&directory, PermissionsExt::from_mode(0o555)).unwrap();
    let exe = std::env::current_exe().unwrap();
    let copy = outer.path().join("it");
    // By another process: what a fork elsewhere has open for writing cannot be run.
    assert!(Command::new("cp").arg("-p").args([&exe, &copy]).status().unwrap().success());
    let mut command = Command::new(&copy);
    if rustix::process::geteuid().is_root() {
        std::os::unix::process::CommandExt::uid(&mut command, 65534);
    }
    let output = command
        .args(["--exact", "opening::child", "--ignored", "--nocapture"])
        .env(DIRECTORY, &directory)
        .current_dir(outer.path())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("refused") && text.contains("Permission denied"), "{text}");
    assert!(text.contains(&*directory.to_string_lossy()), "{text}");
}

#[tokio::test]
async fn an_index_that_is_gone_or_damaged_is_built_anew() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = open(directory.path());
    let mut runs = Vec::new();
    for seed in 0..3 {
        let run = store.open_run(&key("t", &format!("w{seed}")), None).await.unwrap().id;
        for first in (1..4001).step_by(100) {
            append(&store, run, seed, first, 100).await;
        }
        runs.push((seed, run));
    }
    store.append(runs[0].1, finish(4000)).await.unwrap();
    let before = store.runs("t").await.unwrap();
    let task = store.task("t").await.unwrap();
    assert!(store.stats().segments > 5);
    for round in 0..4 {
        store.close().await;
        let index = directory.path().join("index.redb");
        match round {
            0 => std::fs::remove_file(&index).unwrap(),
            1 => std::fs::write(&index, b"what is this").unwrap(),
            2 => {
                let mut bytes = std::fs::read(&index).unwrap();
                let len = bytes.len();
                bytes[..len.min(512)].fill(0x5a);
                std::fs::write(&index, bytes).unwrap();
            }
            _ => {}
        }
        store = open(directory.path());
        assert_eq!(store.runs("t").await.unwrap(), before, "round {round}");
        assert_eq!(store.task("t").await.unwrap(), task);
        for (seed, run) in &runs {
            read(&store, *run, From::Sequence(1)).await.check(*seed, 1, 4001);
            assert!(read(&store, *run, From::Tail(70)).await.lines.len() == 70);
        }
        // Numbers are never given twice.
        let new = store.open_run(&key(&format!("n{round}"), "w"), None).await.unwrap();
        assert!(new.created && runs.iter().all(|(_, run)| *run != new.id));
        assert_eq!(store.stats().damaged, 0);
    }
}

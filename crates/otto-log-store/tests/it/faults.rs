//! A disk that is full, that fails, that is slow.

use std::io;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use otto_log_store::{Clock, Faults, From, Health, OpenError, Options, Record, Store, StoreError};
use otto_proto::v1::{log_gap::Reason, worker_event::Type};

use crate::support::*;

/// Holds the writer before its fdatasync.
#[derive(Default)]
pub(crate) struct Gate {
    shut: Mutex<bool>,
    changed: Condvar,
    waiting: AtomicUsize,
}

impl Gate {
    pub(crate) fn new() -> (Arc<dyn Faults>, Arc<Self>) {
        let gate = Arc::new(Self::default());
        (gate.clone(), gate)
    }

    pub(crate) fn shut(&self) {
        *self.shut.lock().unwrap() = true;
    }

    pub(crate) fn open(&self) {
        *self.shut.lock().unwrap() = false;
        self.changed.notify_all();
    }

    pub(crate) fn wait_until_waiting(&self) {
        let begun = std::time::Instant::now();
        while self.waiting.load(Ordering::SeqCst) == 0 {
            assert!(begun.elapsed() < PATIENCE);
            std::thread::yield_now();
        }
    }
}

impl Faults for Gate {
    fn before_sync(&self) -> io::Result<()> {
        let mut shut = self.shut.lock().unwrap();
        while *shut {
            self.waiting.fetch_add(1, Ordering::SeqCst);
            shut = self.changed.wait(shut).unwrap();
            self.waiting.fetch_sub(1, Ordering::SeqCst);
        }
        Ok(())
    }
}

#[derive(Default)]
struct Broken {
    write: AtomicBool,
    written: AtomicU64,
    sync: AtomicBool,
    syncs: AtomicUsize,
}

impl Faults for Broken {
    fn before_write(&self, bytes: u64) -> io::Result<()> {
        self.written.fetch_add(bytes, Ordering::SeqCst);
        if self.write.load(Ordering::SeqCst) { Err(io::Error::from_raw_os_error(28)) } else { Ok(()) }
    }

    fn before_sync(&self) -> io::Result<()> {
        self.syncs.fetch_add(1, Ordering::SeqCst);
        if self.sync.load(Ordering::SeqCst) { Err(io::Error::from_raw_os_error(5)) } else { Ok(()) }
    }
}

#[tokio::test]
async fn a_failed_fsync_is_not_tried_again_and_the_store_must_be_opened_again() {
    let directory = tempfile::tempdir().unwrap();
    let faults = Arc::new(Broken::default());
    let store = Store::open(Options { faults: faults.clone(), ..options(directory.path()) }).unwrap();
    let run = store.open_run(&key("t", "w"), None).await.unwrap().id;
    append(&store, run, 1, 1, 10).await;
    let mut health = store.watch_health();
    faults.sync.store(true, Ordering::SeqCst);
    let syncs = faults.syncs.load(Ordering::SeqCst);
    let first = store.append(run, Record::Block(block(1, 11, 5)));
    assert!(matches!(first.await, Err(StoreError::Failed(reason)) if reason.contains("fdatasync")));
    health.changed().await.unwrap();
    assert!(matches!(store.health(), Health::Failed(_)));
    faults.sync.store(false, Ordering::SeqCst);
    let again = store.append(run, Record::Block(block(1, 11, 5))).await;
    assert!(matches!(again, Err(StoreError::Failed(_))));
    assert!(matches!(store.open_run(&key("t", "x"), None).await, Err(StoreError::Failed(_))));
    store.ready().await;
    read(&store, run, From::Sequence(1)).await.check(1, 1, 11);
    store.close().await;
    assert_eq!(faults.syncs.load(Ordering::SeqCst), syncs + 1);
    // What was written may be there or not; what was acknowledged is.
    let store = open(directory.path());
    let expected = store.open_run(&key("t", "w"), None).await.unwrap().expected;
    assert!(expected == 11 || expected == 16);
    read(&store, run, From::Sequence(1)).await.check(1, 1, expected);
    append(&store, run, 1, expected, 5).await;
}

/// The page cache may hold what a failed fdatasync did not bring to the disk. Whether the kernel keeps it is not for a
/// test to decide, but what opening asks of the disk is.
#[tokio::test]
async fn what_a_failed_fsync_left_counts_only_once_it_was_written_again_and_synced() {
    let directory = tempfile::tempdir().unwrap();
    let faults = Arc::new(Broken::default());
    let options = || Options { faults: faults.clone(), ..options(directory.path()) };
    let set = |write: bool, sync: bool| {
        faults.write.store(write, Ordering::SeqCst);
        faults.sync.store(sync, Ordering::SeqCst);
    };
    let store = Store::open(options()).unwrap();
    let run = store.open_run(&key("t", "w"), None).await.unwrap().id;
    append(&store, run, 1, 1, 10).await;
    let before = store.stats().segment_bytes;
    set(false, true);
    assert!(matches!(store.append(run, Record::Block(block(1, 11, 5))).await, Err(StoreError::Failed(_))));
    store.close().await;
    // A disk that still fails: it is not opened, however often it is tried.
    for (write, sync) in [(false, true), (true, false), (false, true)] {
        set(write, sync);
        let error = Store::open(options()).unwrap_err();
        assert!(matches!(&error, OpenError::Io { .. }), "{error}");
        assert!(error.to_string().contains("write again the last records"), "{error}");
    }
    set(false, false);
    let (written, syncs) = (faults.written.load(Ordering::SeqCst), faults.syncs.load(Ordering::SeqCst));
    let store = Store::open(options()).unwrap();
    assert_eq!(store.run(run).await.unwrap().unwrap().expected, 16);
    // The last commit, neither more nor less.
    assert_eq!(faults.written.load(Ordering::SeqCst) - written, store.stats().segment_bytes - before);
    assert_eq!(faults.syncs.load(Ordering::SeqCst), syncs + 1);
    read(&store, run, From::Sequence(1)).await.check(1, 1, 16);
    append(&store, run, 1, 16, 5).await;
    store.close().await;
    let store = Store::open(options()).unwrap();
    read(&store, run, From::Sequence(1)).await.check(1, 1, 21);
}

/// Fails the fdatasync of the record that ends a segment: a commit of one header.
#[derive(Default)]
struct BrokenEnd {
    bytes: AtomicU64,
    works: AtomicBool,
}

impl Faults for BrokenEnd {
    fn before_write(&self, bytes: u64) -> io::Result<()> {
        self.bytes.store(bytes, Ordering::SeqCst);
        Ok(())
    }

    fn before_sync(&self) -> io::Result<()> {
        let fails = self.bytes.load(Ordering::SeqCst) == 104 && !self.works.load(Ordering::SeqCst);
        if fails { Err(io::Error::from_raw_os_error(5)) } else { Ok(()) }
    }
}

#[tokio::test]
async fn the_end_of_a_segment_counts_only_once_it_is_on_disk_too() {
    let directory = tempfile::tempdir().unwrap();
    let faults = Arc::new(BrokenEnd::default());
    let options = || Options { faults: faults.clone(), ..options(directory.path()) };
    let store = Store::open(options()).unwrap();
    let run = store.open_run(&key("t", "w"), None).await.unwrap().id;
    let mut next = 1;
    while let Ok(expected) = store.append(run, Record::Block(block(1, next, 100))).await {
        next = expected;
    }
    assert!(matches!(store.health(), Health::Failed(_)));
    store.close().await;
    for _ in 0..2 {
        assert!(matches!(Store::open(options()), Err(OpenError::Io { .. })));
    }
    faults.works.store(true, Ordering::SeqCst);
    let store = Store::open(options()).unwrap();
    read(&store, run, From::Sequence(1)).await.check(1, 1, next);
    append(&store, run, 1, next, 100).await;
    assert_eq!(store.stats().damaged, 0);
}

/// A clock that, once armed, fails whoever asks it in the sealer's thread.
#[derive(Default)]
struct Trap {
    armed: AtomicBool,
    sprung: AtomicBool,
}

impl Clock for Trap {
    fn now_unix_nanos(&self) -> i64 {
        let sealer = std::thread::current().name() == Some("store-sealer");
        if sealer && self.armed.load(Ordering::SeqCst) {
            self.sprung.store(true, Ordering::SeqCst);
            panic!("the test wants the sealer to fail");
        }
        1_000_000_000_000
    }

    fn monotonic(&self) -> Duration {
        Duration::ZERO
    }
}

#[tokio::test]
async fn a_sealer_that_fails_is_noticed_and_the_store_can_be_closed() {
    let directory = tempfile::tempdir().unwrap();
    let clock = Arc::new(Trap::default());
    let store = Store::open(Options { clock: clock.clone(), ..options(directory.path()) }).unwrap();
    let run = store.open_run(&key("t", "w"), None).await.unwrap().id;
    append(&store, run, 1, 1, 10).await;
    store.apply_retention().await.unwrap();
    clock.armed.store(true, Ordering::SeqCst);
    // Both the one that it was doing and one that is asked for later.
    for _ in 0..2 {
        let answer = tokio::time::timeout(PATIENCE, store.apply_retention()).await.unwrap();
        assert!(matches!(&answer, Err(StoreError::Failed(reason)) if reason.contains("sealer")), "{answer:?}");
    }
    assert!(clock.sprung.load(Ordering::SeqCst));
    assert!(matches!(store.health(), Health::Failed(_)));
    assert!(matches!(store.append(run, Record::Block(block(1, 11, 5))).await, Err(StoreError::Failed(_))));
    read(&store, run, From::Sequence(1)).await.check(1, 1, 11);
    tokio::time::timeout(PATIENCE, store.close()).await.unwrap();
    // With such a clock, too: by the real one the lines are old enough to be removed.
    let clock = Arc::new(Trap::default());
    let store = Store::open(Options { clock, ..options(directory.path()) }).unwrap();
    read(&store, run, From::Sequence(1)).await.check(1, 1, 11);
    append(&store, run, 1, 11, 5).await;
}

/// The writer is far ahead and waits for the sealer when that fails.
#[tokio::test]
async fn a_writer_does_not_wait_for_a_sealer_that_failed() {
    let directory = tempfile::tempdir().unwrap();
    let clock = Arc::new(Trap::default());
    clock.armed.store(true, Ordering::SeqCst);
    let store = Store::open(Options { clock: clock.clone(), ..options(directory.path()) }).unwrap();
    let write = async {
        let run = store.open_run(&key("t", "w"), None).await?.id;
        // Ten segments and more, so that it would have to wait.
        for first in (1..20_000).step_by(100) {
            store.append(run, Record::Block(block(1, first, 100))).await?;
        }
        Ok(())
    };
    let result = tokio::time::timeout(PATIENCE, write).await.unwrap();
    assert!(matches!(&result, Err(StoreError::Failed(reason)) if reason.contains("sealer")), "{result:?}");
    tokio::time::timeout(PATIENCE, store.close()).await.unwrap();
}

#[tokio::test]
async fn a_full_disk_refuses_for_a_while_and_readers_go_on() {
    let directory = tempfile::tempdir().unwrap();
    let faults = Arc::new(Broken::default());
    let store = Store::open(Options { faults: faults.clone(), ..options(directory.path()) }).unwrap();
    let run = store.open_run(&key("t", "w"), None).await.unwrap().id;
    append(&store, run, 1, 1, 10).await;
    faults.write.store(true, Ordering::SeqCst);
    for _ in 0..2 {
        assert_eq!(store.append(run, Record::Block(block(1, 11, 5))).await, Err(StoreError::DiskFull));
        assert_eq!(store.put_events(vec![event("t", "1", Type::Queued)]).await, Err(StoreError::DiskFull));
    }
    assert_eq!(store.health(), Health::DiskFull);
    read(&store, run, From::Sequence(1)).await.check(1, 1, 11);
    faults.write.store(false, Ordering::SeqCst);
    eventually("writes again", async || store.append(run, Record::Block(block(1, 11, 5))).await.ok()).await;
    assert_eq!(store.health(), Health::Ok);
    store.close().await;
    let store = open(directory.path());
    read(&store, run, From::Sequence(1)).await.check(1, 1, 16);
    assert_eq!(store.stats().damaged, 0);
}

/// A write that a full disk refused is not told of by the record after it.
#[tokio::test]
async fn damage_after_a_refused_write_hides_nothing_that_was_stored_later() {
    let directory = tempfile::tempdir().unwrap();
    let faults = Arc::new(Broken::default());
    let store = Store::open(Options { faults: faults.clone(), ..options(directory.path()) }).unwrap();
    let run = store.open_run(&key("t", "w"), None).await.unwrap().id;
    let other = store.open_run(&key("t", "other"), None).await.unwrap().id;
    append(&store, run, 1, 1, 10).await;
    let damaged_at = store.stats().segment_bytes as usize;
    append(&store, run, 1, 11, 10).await;
    faults.write.store(true, Ordering::SeqCst);
    assert_eq!(store.append(run, Record::Block(block(1, 21, 100))).await, Err(StoreError::DiskFull));
    faults.write.store(false, Ordering::SeqCst);
    eventually("writes again", async || store.append(other, Record::Block(block(2, 1, 10))).await.ok()).await;
    append(&store, run, 1, 21, 10).await;
    store.close().await;
    let path = directory.path().join("segments").join(&segment_files(directory.path())[0]);
    let mut bytes = std::fs::read(&path).unwrap();
    // In the header.
    bytes[damaged_at + 30] ^= 4;
    std::fs::write(&path, bytes).unwrap();
    let store = open(directory.path());
    let seen = read(&store, run, From::Sequence(1)).await;
    assert_eq!(seen.gaps, [(11, 20, Reason::Damaged)]);
    seen.check(1, 1, 31);
    read(&store, other, From::Sequence(1)).await.check(2, 1, 11);
}

/// A small file system of its own. Needs to be root and allowed to mount; elsewhere the test above has to do.
struct Mount(tempfile::TempDir);

impl Mount {
    fn new(bytes: u64) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let done = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "otto-test"])
            .arg(directory.path())
            .output()
            .ok()?;
        done.status.success().then(|| Self(directory))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0.path()).status();
    }
}

#[tokio::test]
async fn a_really_full_disk() {
    let Some(mount) = Mount::new(24 << 20) else { return };
    let directory = mount.0.path().join("store");
    let options = || Options { segment_bytes: 1 << 20, ..options(&directory) };
    let mut store = Store::open(options()).unwrap();
    let run = store.open_run(&key("t", "w"), None).await.unwrap().id;
    let gone = store.open_run(&key("gone", "w"), None).await.unwrap().id;
    append(&store, gone, 2, 1, 100).await;
    let ballast = mount.0.path().join("ballast");
    std::fs::write(&ballast, vec![1; 8 << 20]).unwrap();
    let mut next = 1;
    let full = loop {
        match store.append(run, Record::Block(block(1, next, 100))).await {
            Ok(expected) => next = expected,
            Err(error) => break error,
        }
    };
    assert_eq!(full, StoreError::DiskFull);
    assert!(next > 10_000);
    assert_eq!(store.health(), Health::DiskFull);
    read(&store, run, From::Sequence(1)).await.check(1, 1, next);
    // What frees space is written all the same.
    assert_eq!(store.delete_task("gone").await, Ok(true));
    // It opens and serves on a full disk.
    store.close().await;
    store = Store::open(options()).unwrap();
    assert_eq!(store.task("gone").await.unwrap(), None);
    read(&store, run, From::Sequence(1)).await.check(1, 1, next);
    std::fs::remove_file(&ballast).unwrap();
    next = eventually("writes again", async || store.append(run, Record::Block(block(1, next, 100))).await.ok()).await;
    assert_eq!(store.health(), Health::Ok);
    store.close().await;
    store = Store::open(options()).unwrap();
    read(&store, run, From::Sequence(1)).await.check(1, 1, next);
    assert_eq!(store.stats().damaged, 0);
    store.close().await;
}

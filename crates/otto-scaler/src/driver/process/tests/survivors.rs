//! What a later scaler finds.

use super::*;

#[tokio::test]
async fn workers_outlive_the_scaler_and_are_followed_to_their_end() {
    let place = Place::new();
    let mut driven = place.open("");
    let script = format!("while [ ! -e {} ]; do sleep 0.01; done; echo $OTTO_JOB_INDEX", place.path("go").display());
    for index in 0..3 {
        driven.driver.create(shell(&key("t", index), &script)).await.unwrap();
        driven.running(&key("t", index)).await;
    }
    driven.close().await;
    let mut driven = place.open("");
    assert_eq!(driven.list().await, 3);
    for index in 0..3 {
        let seen = &driven.seen[&key("t", index)];
        assert_eq!(seen.state, State::Running);
        assert!(seen.started_at.is_some());
    }
    fs::write(place.path("go"), "").unwrap();
    for index in 0..3 {
        assert_eq!(driven.ended(&key("t", index)).await.class, Class::Success);
        driven.remove(&key("t", index)).await;
    }
    driven.close().await;
}

#[tokio::test]
async fn a_survivor_can_be_stopped() {
    let place = Place::new();
    let mut driven = place.open("");
    let key = key("t", 0);
    driven.driver.create(shell(&key, "sleep 1000")).await.unwrap();
    driven.running(&key).await;
    driven.close().await;
    let mut driven = place.open("");
    driven.list().await;
    driven.driver.stop(&key).await.unwrap();
    assert_eq!(driven.ended(&key).await.class, Class::Stopped);
    driven.close().await;
}

#[tokio::test]
async fn what_cannot_be_read_now_is_no_end_and_no_absence() {
    let place = Place::new();
    let mut driven = place.open("");
    let key = key("t", 0);
    let script = format!("while [ ! -e {} ]; do sleep 0.01; done", place.path("go").display());
    driven.driver.create(shell(&key, &script)).await.unwrap();
    driven.running(&key).await;
    driven.close().await;
    // A directory opens and cannot be read: an error that is neither "not there" nor damage.
    let dir = place.run_dir(&key);
    fs::create_dir(dir.join("exit.json")).unwrap();
    let mut driven = place.open("");
    assert!(driven.driver.list().await.is_err());
    fs::remove_dir(dir.join("exit.json")).unwrap();
    let launch = fs::read(dir.join("launch.json")).unwrap();
    fs::remove_file(dir.join("launch.json")).unwrap();
    fs::create_dir(dir.join("launch.json")).unwrap();
    assert!(driven.driver.list().await.is_err());
    fs::remove_dir(dir.join("launch.json")).unwrap();
    // Damaged: its name is told, as long as it runs.
    fs::write(dir.join("launch.json"), "").unwrap();
    let error = format!("{:#}", driven.driver.list().await.unwrap_err());
    assert!(error.contains(&name::worker_name(&key)), "{error}");
    fs::write(dir.join("launch.json"), launch).unwrap();
    assert_eq!(driven.list().await, 1);
    assert_eq!(driven.seen[&key].state, State::Running);
    // And while it is followed.
    fs::create_dir(dir.join("exit.json")).unwrap();
    driven.driver.shared.worker(&key).unwrap().wake();
    let ended = driven.until(&key, |seen| matches!(seen.state, State::Ended { .. }));
    assert!(tokio::time::timeout(Duration::from_millis(300), ended).await.is_err());
    fs::remove_dir(dir.join("exit.json")).unwrap();
    fs::write(place.path("go"), "").unwrap();
    assert_eq!(driven.ended(&key).await.class, Class::Success);
    driven.close().await;
}

/// As a scaler leaves it that is killed right before the agent is started.
fn unstarted(place: &Place, key: &WorkerKey, script: &str) {
    let dir = RunDir::new(place.run_dir(key));
    fs::create_dir_all(place.path("runs")).unwrap();
    assert!(dir.make().unwrap());
    dir.write_launch(&LaunchFile::new(&shell(key, script), 5)).unwrap();
}

#[tokio::test]
async fn what_was_about_to_start_is_started_once() {
    let place = Place::new();
    let key = key("t", 0);
    let script = format!("echo x >> {}", place.path("marks").display());
    unstarted(&place, &key, &script);
    let mut driven = place.open("");
    assert_eq!(driven.list().await, 1);
    assert_eq!(driven.seen[&key].created_at, 5);
    driven.driver.create(shell(&key, &script)).await.unwrap();
    assert_eq!(driven.ended(&key).await.class, Class::Success);
    assert_eq!(place.text("marks"), "x\n");
    driven.close().await;
}

#[tokio::test]
async fn a_start_mark_without_launch_is_never_started_again() {
    let place = Place::new();
    let key = key("t", 0);
    let script = format!("echo x >> {}", place.path("marks").display());
    // As a machine that went down may leave it.
    unstarted(&place, &key, &script);
    fs::write(place.run_dir(&key).join("launch.json"), "").unwrap();
    fs::write(place.run_dir(&key).join("started"), "").unwrap();
    let mut driven = place.open("");
    assert_eq!(driven.list().await, 0);
    driven.driver.create(shell(&key, &script)).await.unwrap();
    assert_eq!(driven.ended(&key).await.class, Class::AgentLost);
    assert!(!place.path("marks").exists());
    driven.close().await;
}

#[tokio::test]
async fn half_made_directories_and_strangers_do_no_harm() {
    let place = Place::new();
    let (half, torn) = (key("half", 0), key("torn", 0));
    for key in [&half, &torn] {
        fs::create_dir_all(place.run_dir(key)).unwrap();
    }
    fs::write(place.run_dir(&half).join("launch.json.new"), "{").unwrap();
    fs::write(place.run_dir(&torn).join("launch.json"), "{").unwrap();
    fs::create_dir_all(place.path("runs/lost+found")).unwrap();
    fs::write(place.path("runs/otto-file"), "").unwrap();
    fs::create_dir_all(place.path("runs/.removed/otto-x.0/spool")).unwrap();
    let mut driven = place.open("");
    assert_eq!(driven.list().await, 0);
    assert!(!place.run_dir(&half).exists() && !place.path("runs/.removed/otto-x.0").exists());
    assert!(place.path("runs/lost+found").exists() && place.run_dir(&torn).exists());
    for key in [&half, &torn] {
        driven.driver.create(shell(key, "true")).await.unwrap();
        assert_eq!(driven.ended(key).await.class, Class::Success);
    }
    driven.close().await;
}

#[tokio::test]
async fn thousands_of_ended_workers_are_listed_quickly_and_hold_nothing() {
    let place = Place::new();
    fs::create_dir_all(place.path("runs")).unwrap();
    for index in 0..2_000 {
        let key = key("many", index);
        let dir = RunDir::new(place.run_dir(&key));
        dir.make().unwrap();
        let launch = LaunchFile::new(&shell(&key, "true"), 5);
        fs::write(dir.path().join("launch.json"), serde_json::to_vec(&launch).unwrap()).unwrap();
        dir.forbid_start().unwrap();
        let outcome = Outcome { class: Class::Success, exit_code: Some(0), signal: None, message: String::new() };
        dir.write_outcome(&outcome, 7).unwrap();
    }
    // Tests beside this one have theirs.
    let own = place.dir.path().canonicalize().unwrap();
    let descriptors = || {
        let files =
            fs::read_dir("/proc/self/fd").unwrap().flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
        files.filter(|file| file.starts_with(&own)).count()
    };
    let mut driven = place.open("");
    let before = descriptors();
    assert_eq!(driven.list().await, 2_000);
    assert!(descriptors() < before + 100);
    assert!(driven.seen.values().all(|seen| matches!(seen.state, State::Ended { at: 7, .. })));
    driven.driver.remove(&key("many", 77)).await.unwrap();
    assert_eq!(driven.list().await, 1_999);
    driven.close().await;
}

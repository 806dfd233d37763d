//! Ends that are not the job's own.

use super::*;

/// A job that writes its pid and those of a child in its group and one that went to a session of its own.
fn family(place: &Place) -> String {
    let dir = place.dir.path().display();
    format!(
        "echo line; sleep 1000 & setsid sleep 1000 & echo $$ $! > {dir}/pids.tmp; mv {dir}/pids.tmp {dir}/pids; wait"
    )
}

async fn pids(place: &Place) -> Vec<i32> {
    eventually("the job has told its pids", || place.path("pids").exists()).await;
    place.text("pids").split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

fn kill(pid: i32, signal: rustix::process::Signal) {
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), signal).unwrap();
}

fn agent_pid(place: &Place, key: &WorkerKey) -> i32 {
    fs::read_to_string(place.run_dir(key).join("lock")).unwrap().trim().parse().unwrap()
}

#[tokio::test]
async fn a_killed_agent_takes_its_job_along_and_its_lines_are_kept() {
    let place = Place::new();
    let mut driven = place.open("");
    let key = key("t", 0);
    driven.driver.create(shell(&key, &family(&place))).await.unwrap();
    driven.running(&key).await;
    let family = pids(&place).await;
    let mut bystander =
        std::process::Command::new("sleep").arg("1000").stdout(std::process::Stdio::null()).spawn().unwrap();
    kill(agent_pid(&place, &key), rustix::process::Signal::KILL);
    let outcome = driven.ended(&key).await;
    assert_eq!(outcome.class, Class::AgentLost);
    assert!(outcome.message.contains("its agent was killed (signal 9)"), "{outcome:?}");
    assert!(!family.iter().any(|pid| runs(*pid)), "{family:?}");
    assert!(bystander.try_wait().unwrap().is_none());
    bystander.kill().unwrap();
    bystander.wait().unwrap();
    assert_eq!(place.text("drained-output"), "line\n", "not drained before the end was told");
    // Every later look finds the same.
    driven.close().await;
    let mut driven = place.open("");
    driven.list().await;
    assert_eq!(driven.ended(&key).await, outcome);
    driven.remove(&key).await;
    driven.close().await;
}

#[tokio::test]
async fn a_survivor_whose_agent_is_killed_is_lost_too() {
    let place = Place::new();
    let mut driven = place.open("");
    let (before, after) = (key("killed before", 0), key("killed after", 0));
    driven.driver.create(shell(&before, &family(&place))).await.unwrap();
    driven.running(&before).await;
    let family_before = pids(&place).await;
    fs::remove_file(place.path("pids")).unwrap();
    driven.driver.create(shell(&after, &family(&place))).await.unwrap();
    driven.running(&after).await;
    let family_after = pids(&place).await;
    driven.close().await;
    kill(agent_pid(&place, &before), rustix::process::Signal::KILL);

    let mut driven = place.open("");
    assert_eq!(driven.list().await, 2);
    assert_eq!(driven.ended(&before).await.class, Class::AgentLost);
    assert!(!family_before.iter().any(|pid| runs(*pid)), "{family_before:?}");
    assert!(family_after.iter().all(|pid| runs(*pid)), "{family_after:?}");
    kill(agent_pid(&place, &after), rustix::process::Signal::KILL);
    assert_eq!(driven.ended(&after).await.class, Class::AgentLost);
    assert!(!family_after.iter().any(|pid| runs(*pid)), "{family_after:?}");
    driven.close().await;
}

#[tokio::test]
async fn stopping_is_the_agents_work() {
    let place = Place::new();
    // The driver itself does nothing before the grace period is over.
    let stop_grace = Duration::from_secs(60);
    let mut driven = Driven::open(Options { stop_grace, ..options(place.dir.path(), "") });
    let key = key("t", 0);
    driven.driver.create(shell(&key, "sleep 1000")).await.unwrap();
    driven.running(&key).await;
    driven.driver.stop(&key).await.unwrap();
    driven.driver.stop(&key).await.unwrap();
    let outcome = driven.ended(&key).await;
    assert_eq!((outcome.class, outcome.exit_code), (Class::Stopped, Some(143)), "{outcome:?}");
    driven.driver.stop(&key).await.unwrap();
    driven.remove(&key).await;
    driven.driver.stop(&key).await.unwrap();
    driven.close().await;
}

#[tokio::test]
async fn an_agent_that_does_not_stop_is_killed_with_its_job() {
    let place = Place::new();
    let mut driven = place.open("deaf");
    let key = key("t", 0);
    driven.driver.create(shell(&key, &family(&place))).await.unwrap();
    driven.running(&key).await;
    let family = pids(&place).await;
    let start = Instant::now();
    driven.driver.stop(&key).await.unwrap();
    let outcome = driven.ended(&key).await;
    assert!(start.elapsed() >= Duration::from_millis(800), "before the grace period was over");
    assert_eq!((outcome.class, outcome.exit_code, outcome.signal), (Class::Stopped, Some(137), Some(9)));
    assert!(outcome.message.contains("grace period"), "{outcome:?}");
    assert!(!family.iter().any(|pid| runs(*pid)), "{family:?}");
    driven.close().await;
}

#[tokio::test]
async fn a_worker_that_has_not_begun_is_stopped_for_good() {
    let place = Place::new();
    let mut driven = place.open("hang");
    let key = key("t", 0);
    let marks = place.path("marks");
    let launch = shell(&key, &format!("echo x >> {}", marks.display()));
    driven.driver.create(launch.clone()).await.unwrap();
    driven.driver.stop(&key).await.unwrap();
    let outcome = driven.ended(&key).await;
    assert_eq!(outcome.class, Class::Stopped);
    assert!(outcome.message.contains("before it began"), "{outcome:?}");
    driven.close().await;
    let mut driven = place.open("");
    driven.driver.create(launch).await.unwrap();
    assert_eq!(driven.ended(&key).await, outcome);
    assert!(!marks.exists());
    driven.close().await;
}

#[tokio::test]
async fn output_that_nobody_takes_is_kept_until_somebody_does() {
    let place = Place::new();
    let mut driven = place.open("undrained");
    let key = key("t", 0);
    driven.driver.create(shell(&key, "echo kept")).await.unwrap();
    // The end is told although its output is not delivered.
    assert_eq!(driven.ended(&key).await.class, Class::Success);
    let error = driven.driver.remove(&key).await.unwrap_err().to_string();
    assert!(error.contains("not delivered"), "{error}");
    assert!(place.run_dir(&key).exists());
    fs::write(place.path("log-server"), "").unwrap();
    driven.remove(&key).await;
    assert_eq!(place.text("drained-output"), "kept\n");
    driven.close().await;
}

#[tokio::test]
async fn output_is_given_up_at_the_limit() {
    let place = Place::new();
    let mut options = options(place.dir.path(), "undrained");
    options.drain_limit = Duration::ZERO;
    let mut driven = Driven::open(options);
    let key = key("t", 0);
    driven.driver.create(shell(&key, "echo lost")).await.unwrap();
    assert_eq!(driven.ended(&key).await.class, Class::Success);
    driven.remove(&key).await;
    assert!(!place.run_dir(&key).exists() && !place.path("drained-output").exists());
    driven.close().await;
}

#[tokio::test]
async fn a_run_directory_that_is_removed_under_a_worker() {
    let place = Place::new();
    let mut driven = place.open("");
    let key = key("t", 0);
    driven.driver.create(shell(&key, &family(&place))).await.unwrap();
    driven.running(&key).await;
    let family = pids(&place).await;
    let agent = agent_pid(&place, &key);
    fs::remove_dir_all(place.run_dir(&key)).unwrap();
    assert_eq!(driven.list().await, 1);
    kill(agent, rustix::process::Signal::KILL);
    let outcome = driven.ended(&key).await;
    assert_eq!(outcome.class, Class::AgentLost);
    assert!(!family.iter().any(|pid| runs(*pid)), "{family:?}");
    let start = Instant::now();
    while driven.list().await > 0 {
        assert!(start.elapsed() < PATIENCE, "it is listed for ever");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    driven.close().await;
}

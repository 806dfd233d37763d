//! One worker from its creation to its removal.

use std::sync::Arc;

use super::*;

#[tokio::test]
async fn a_job_runs_with_what_it_may_have_and_ends() {
    let place = Place::new();
    let mut driven = place.open("");
    let key = key("../../a task/../../etc", 3);
    let script =
        "env | sort; grep NoNewPrivs /proc/self/status; readlink /proc/self/fd/0; ps -o sid= -p $$; umask; exit 3";
    let mut launch = shell(&key, script);
    let spec = Arc::make_mut(&mut launch.spec);
    spec.env.insert("COLOR".into(), "blue".into());
    spec.args = vec!["unused $0".into()];
    spec.repository = "acme/shop".into();
    launch.traceparent = Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".into());
    driven.driver.create(launch).await.unwrap();
    let outcome = driven.ended(&key).await;
    assert_eq!((outcome.class, outcome.exit_code), (Class::Exited, Some(3)), "{outcome:?}");
    assert_eq!(outcome.message, "ended with 3");
    let seen = driven.seen[&key].clone();
    assert!(seen.started_at.unwrap() >= seen.created_at, "{seen:?}");

    eventually("its output is drained", || place.run_dir(&key).join("drained").exists()).await;
    let output = place.text("drained-output");
    for line in ["COLOR=blue", "OTTO_JOB_INDEX=3", "OTTO_JOB_REPOSITORY=acme/shop", "NoNewPrivs:\t1", "/dev/null"] {
        assert!(output.lines().any(|found| found == line), "{line} is not in {output}");
    }
    assert!(output.contains("TRACEPARENT=00-4bf92f"), "{output}");
    assert!(!output.contains("CARGO"), "the environment is not cleared: {output}");
    // Field 6 of proc_pid_stat(5), read as text: it is 0 where the leader is outside this PID namespace.
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let session = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(3).unwrap();
    assert!(!output.lines().any(|line| line.trim() == session), "not in a session of its own: {output}");

    // Whatever the task's id holds, nothing is outside.
    let entries: Vec<_> = fs::read_dir(place.path("runs")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(entries.iter().any(|name| name.to_str() == Some(&driven.driver.worker_name(&key))), "{entries:?}");

    driven.remove(&key).await;
    assert!(!place.run_dir(&key).exists());
    driven.driver.remove(&key).await.unwrap();
    assert_eq!(driven.list().await, 0);
    driven.close().await;
}

#[tokio::test]
async fn creating_again_starts_nothing_again() {
    let place = Place::new();
    let mut driven = place.open("");
    let key = key("t", 0);
    let marks = place.path("marks");
    let launch = shell(
        &key,
        &format!(
            "echo x >> {}; while [ ! -e {}/go ]; do sleep 0.01; done",
            marks.display(),
            place.dir.path().display()
        ),
    );
    driven.driver.create(launch.clone()).await.unwrap();
    driven.driver.create(launch.clone()).await.unwrap();
    driven.running(&key).await;
    driven.driver.create(launch.clone()).await.unwrap();
    let refused = driven.driver.remove(&key).await.unwrap_err().to_string();
    assert!(refused.contains("has not ended"), "{refused}");
    driven.close().await;

    // Another scaler that has not listed: lock held, then ended.
    let mut driven = place.open("");
    driven.driver.create(launch.clone()).await.unwrap();
    driven.running(&key).await;
    fs::write(place.path("go"), "").unwrap();
    assert_eq!(driven.ended(&key).await.class, Class::Success);
    driven.driver.create(launch.clone()).await.unwrap();
    driven.close().await;
    let mut driven = place.open("");
    driven.driver.create(launch).await.unwrap();
    assert_eq!(driven.ended(&key).await.class, Class::Success);
    assert_eq!(place.text("marks"), "x\n");
    driven.close().await;
}

#[tokio::test]
async fn a_data_directory_is_for_one_scaler() {
    let place = Place::new();
    let driven = place.open("");
    let error = ProcessDriver::open(options(place.dir.path(), ""), CancellationToken::new()).err().unwrap();
    assert!(format!("{error:#}").contains("locked by another process"), "{error:#}");
    driven.close().await;
}

#[tokio::test]
async fn what_cannot_be_started_says_why() {
    let place = Place::new();
    let mut missing = options(place.dir.path(), "");
    missing.worker_binary = "/no/such/otto-worker".into();
    let error = ProcessDriver::open(missing, CancellationToken::new()).err().unwrap().to_string();
    assert!(error.contains("--worker-binary") && error.contains("/no/such/otto-worker"), "{error}");

    let mut driven = place.open("");
    let too_large = shell(&key("large", 0), &"x".repeat(200_000));
    match driven.driver.create(too_large).await {
        Err(DriverError::Refused(outcome)) => assert_eq!(outcome.class, Class::Config, "{outcome:?}"),
        other => panic!("{other:?}"),
    }
    fs::remove_file(place.path("otto-worker")).unwrap();
    match driven.driver.create(shell(&key("t", 0), "true")).await {
        Err(DriverError::Refused(outcome)) => {
            assert_eq!(outcome.class, Class::Infrastructure);
            assert!(outcome.message.contains("otto-worker cannot be started: No such file"), "{outcome:?}");
        }
        other => panic!("{other:?}"),
    }
    // Nothing is left that a later scaler would start.
    assert_eq!(driven.list().await, 0);
    assert_eq!(fs::read_dir(place.path("runs")).unwrap().filter(|e| is_run(e.as_ref().unwrap())).count(), 0);
    // And it works once the program is there.
    write_agent(place.dir.path());
    driven.driver.create(shell(&key("t", 0), "true")).await.unwrap();
    assert_eq!(driven.ended(&key("t", 0)).await.class, Class::Success);
    driven.close().await;
}

fn is_run(entry: &fs::DirEntry) -> bool {
    name::is_worker_name(entry.file_name().to_str().unwrap())
}

#[tokio::test]
async fn an_agent_that_never_begins_is_told_with_its_own_words() {
    let place = Place::new();
    let mut driven = place.open("fail");
    let key = key("t", 0);
    driven.driver.create(shell(&key, "true")).await.unwrap();
    let outcome = driven.ended(&key).await;
    assert_eq!(outcome.class, Class::Infrastructure);
    assert!(outcome.message.contains("exit code 9") && outcome.message.contains("error: no good"), "{outcome:?}");
    // It was tried more than once, and will never begin now.
    assert_eq!(fs::read_to_string(place.run_dir(&key).join("agent.log")).unwrap().lines().count(), 3);
    assert!(place.run_dir(&key).join("started").exists());
    driven.remove(&key).await;
    driven.close().await;
}

#[tokio::test]
async fn the_agents_messages_are_bounded() {
    let place = Place::new();
    let mut driven = place.open("");
    let key = key("t", 0);
    driven.driver.create(shell(&key, "while [ ! -e go ]; do sleep 0.01; done")).await.unwrap();
    driven.running(&key).await;
    let log = place.run_dir(&key).join("agent.log");
    let mut file = fs::File::options().append(true).open(&log).unwrap();
    std::io::Write::write_all(&mut file, &vec![b'x'; 1_100_000]).unwrap();
    eventually("the agent's log is cut", || fs::metadata(&log).unwrap().len() < 1_000).await;
    driven.driver.stop(&key).await.unwrap();
    driven.ended(&key).await;
    driven.close().await;
}

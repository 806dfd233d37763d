use serde_json::json;

use super::*;
use crate::driver::Waiting;
use crate::driver::kubernetes::names::{
    ATTEMPT_LABEL, INDEX_LABEL, JOB_CONTAINER, MANAGED_BY_LABEL, NAME_LABEL, TASK_ANNOTATION,
};
use crate::task::{Class, Outcome};

fn key(index: u32) -> WorkerKey {
    WorkerKey { task_id: "t".to_owned(), index, attempt: 1 }
}

fn pod(index: u32, uid: &str, job: serde_json::Value) -> SeenPod {
    let value = json!({
        "metadata": {
            "name": name::worker_name(&key(index)),
            "uid": uid,
            "resourceVersion": "7",
            "creationTimestamp": "2026-11-21T10:00:00Z",
            "labels": {
                NAME_LABEL.0: NAME_LABEL.1, MANAGED_BY_LABEL.0: MANAGED_BY_LABEL.1,
                INDEX_LABEL: index.to_string(), ATTEMPT_LABEL: "1",
            },
            "annotations": { TASK_ANNOTATION: "t" },
        },
        "spec": { "nodeName": "n1" },
        "status": {
            "phase": "Running",
            "containerStatuses": [{ "name": JOB_CONTAINER, "state": job }],
        },
    });
    serde_json::from_value(value).unwrap()
}

fn creating() -> serde_json::Value {
    json!({ "waiting": { "reason": "ContainerCreating" } })
}

fn running() -> serde_json::Value {
    json!({ "running": { "startedAt": "2026-11-21T10:00:01Z" } })
}

fn ended(code: i32) -> serde_json::Value {
    json!({ "terminated": { "exitCode": code, "finishedAt": "2026-11-21T10:00:02Z" } })
}

fn told() -> Workers {
    let workers = Workers::default();
    workers.tell();
    workers
}

/// Everything that is told now.
fn news(workers: &Workers) -> Vec<(u32, State)> {
    let mut all = Vec::new();
    while let Some((seen, gone)) = workers.take_news() {
        all.extend([seen, gone].into_iter().flatten().map(|observed| (observed.key.index, observed.state)));
    }
    all
}

fn states(workers: &Workers) -> Vec<State> {
    workers.all().into_iter().map(|observed| observed.state).collect()
}

#[test]
fn a_life_is_told_in_order() {
    let workers = told();
    workers.applied(&pod(0, "a", creating()));
    assert_eq!(news(&workers), [(0, State::Created { waiting: None })]);
    workers.applied(&pod(0, "a", running()));
    assert_eq!(news(&workers), [(0, State::Running)]);
    let found = workers.find(&key(0)).unwrap();
    assert_eq!((&*found.uid, found.ended_since), ("a", None));
    workers.applied(&pod(0, "a", ended(0)));
    let all = news(&workers);
    assert!(matches!(&all[..], [(0, State::Ended { outcome, .. })] if outcome.class == Class::Success), "{all:?}");
    assert!(workers.find(&key(0)).unwrap().ended_since.is_some());
    workers.deleted(&pod(0, "a", ended(0)));
    assert!(matches!(&news(&workers)[..], [.., (0, State::Gone)]));
    assert!(workers.all().is_empty());
}

#[test]
fn what_changes_nothing_is_not_told() {
    let workers = told();
    workers.applied(&pod(0, "a", running()));
    assert_eq!(news(&workers).len(), 1);
    workers.applied(&pod(0, "a", running()));
    assert_eq!(news(&workers), []);
}

#[test]
fn a_slow_reader_gets_the_last_word() {
    let workers = told();
    for index in 0..3 {
        workers.applied(&pod(index, "a", creating()));
    }
    workers.applied(&pod(1, "a", running()));
    workers.applied(&pod(1, "a", ended(3)));
    workers.deleted(&pod(1, "a", ended(3)));
    let all = news(&workers);
    let of_1: Vec<_> = all.iter().filter(|(index, _)| *index == 1).map(|(_, state)| state).collect();
    assert!(
        matches!(&of_1[..], [State::Ended { outcome, .. }, State::Gone] if outcome.exit_code == Some(3)),
        "{all:?}"
    );
    assert_eq!(all.len(), 4);
}

#[test]
fn a_deletion_tells_how_it_ended_before_it_is_gone() {
    let workers = told();
    workers.applied(&pod(0, "a", running()));
    news(&workers);
    workers.deleted(&pod(0, "a", running()));
    let all = news(&workers);
    assert!(matches!(&all[..], [(0, State::Ended { .. }), (0, State::Gone)]), "{all:?}");
}

#[test]
fn what_a_new_list_does_not_hold_is_gone() {
    let workers = told();
    workers.listing();
    for index in 0..3 {
        workers.applied(&pod(index, "a", running()));
    }
    assert_eq!(workers.synced(), 3);
    news(&workers);

    // A list that was cut off says nothing about those that it did not come to.
    workers.listing();
    workers.applied(&pod(0, "a", running()));
    assert_eq!(news(&workers), []);
    assert_eq!(workers.all().len(), 3);

    workers.listing();
    workers.applied(&pod(0, "a", running()));
    workers.applied(&pod(2, "a", ended(0)));
    workers.applied(&pod(5, "a", running()));
    assert_eq!(workers.synced(), 3);
    let mut all = news(&workers);
    all.sort_by_key(|(index, _)| *index);
    assert!(matches!(&all[..], [(1, State::Gone), (2, State::Ended { .. }), (5, State::Running)]), "{all:?}");
}

#[test]
fn an_older_pod_of_the_same_name_takes_nothing_away() {
    let workers = told();
    workers.applied(&pod(0, "new", running()));
    workers.deleted(&pod(0, "old", ended(0)));
    assert_eq!(states(&workers), [State::Running]);
}

#[test]
fn a_creation_knows_that_its_pod_was_seen() {
    let workers = Workers::default();
    let making = workers.make(&key(0)).unwrap();
    assert!(!making.is_seen());
    workers.applied(&pod(1, "a", creating()));
    assert!(!making.is_seen());
    workers.applied(&pod(0, "a", creating()));
    workers.deleted(&pod(0, "a", creating()));
    assert!(making.is_seen(), "though it is gone again: it must not be made twice");
    drop(making);
    workers.applied(&pod(0, "b", creating()));
    assert!(workers.make(&key(0)).is_none(), "it exists");
}

#[test]
fn pods_of_others_are_none_of_ours() {
    let workers = told();
    let mut other = pod(0, "a", running());
    other.metadata.labels.as_mut().unwrap().remove(INDEX_LABEL);
    workers.applied(&other);
    workers.deleted(&other);
    let mut copy = pod(0, "a", running());
    copy.metadata.name = Some("a-copy".to_owned());
    workers.applied(&copy);
    assert_eq!((workers.all().len(), news(&workers).len()), (0, 0));
}

#[test]
fn a_silent_pod_is_looked_into_now_and_then() {
    let workers = told();
    workers.applied(&pod(0, "a", creating()));
    news(&workers);
    let start = Instant::now();
    let after = |seconds| start + Duration::from_secs(seconds);
    assert_eq!(workers.quiet(after(15)), None);
    assert_eq!(workers.quiet(after(25)), Some((key(0), "a".into())));
    assert_eq!(workers.quiet(after(26)), None);
    let why = Waiting {
        outcome: Outcome { class: Class::Volume, exit_code: None, signal: None, message: "no volume".to_owned() },
        hopeless: false,
        usual: false,
    };
    workers.explain(&key(0), "other", Learnt::Trouble(why.clone()));
    assert_eq!(news(&workers), []);
    workers.explain(&key(0), "a", Learnt::Trouble(why.clone()));
    assert_eq!(news(&workers), [(0, State::Created { waiting: Some(why.clone()) })]);
    // Still silent: what was found out stays.
    workers.applied(&pod(0, "a", creating()));
    assert_eq!(states(&workers), [State::Created { waiting: Some(why) }]);
    assert_eq!(workers.quiet(after(80)), None);
    assert!(workers.quiet(after(90)).is_some());
    assert_eq!(workers.quiet(after(200)), None);
    assert!(workers.quiet(after(220)).is_some());
    workers.applied(&pod(0, "a", running()));
    assert_eq!(states(&workers), [State::Running]);
    assert_eq!(workers.quiet(after(9_999)), None);
}

#[test]
fn what_was_found_out_is_forgotten_when_it_goes_on() {
    let workers = told();
    let setting_up = |ready: &str| {
        let mut pod = serde_json::json!({ "type": "PodReadyToStartContainers" });
        pod["status"] = ready.into();
        let mut seen = self::pod(0, "a", creating());
        seen.status.conditions = Some(vec![serde_json::from_value(pod).unwrap()]);
        seen
    };
    workers.applied(&setting_up("False"));
    let why = Outcome { class: Class::Volume, exit_code: None, signal: None, message: "no volume".to_owned() };
    let why_not = Waiting { outcome: why.clone(), hopeless: false, usual: false };
    workers.explain(&key(0), "a", Learnt::Trouble(why_not));
    assert!(matches!(&states(&workers)[..], [State::Created { waiting: Some(waiting) }] if waiting.outcome == why));
    // One whose image is being pulled shows the same; that is no wait.
    workers.explain(&key(0), "a", Learnt::OnItsWay);
    assert_eq!(states(&workers), [State::Created { waiting: None }]);
    // The volume has come.
    workers.applied(&setting_up("True"));
    assert_eq!(states(&workers), [State::Created { waiting: None }]);
    assert!(workers.quiet(Instant::now() + QUIET).is_some(), "it is looked into soon");
}

#[tokio::test]
async fn news_wake_who_waits_for_them() {
    let workers = std::sync::Arc::new(told());
    let reader = tokio::spawn({
        let workers = std::sync::Arc::clone(&workers);
        async move { workers.next_news().await }
    });
    tokio::task::yield_now().await;
    workers.applied(&pod(0, "a", running()));
    let (seen, gone) = reader.await.unwrap();
    assert_eq!((seen.unwrap().state, gone), (State::Running, None));
}

#[test]
fn what_was_made_exists_though_the_watch_is_silent() {
    let workers = told();
    let made = |index| workers.make(&key(index)).unwrap().exists();
    made(0);
    assert_eq!(states(&workers), [State::Created { waiting: None }]);
    assert!(workers.make(&key(0)).is_none(), "it exists");
    // A list that was under way when it was created does not hold it.
    workers.listing();
    made(1);
    workers.synced();
    assert_eq!((states(&workers).len(), news(&workers)), (2, vec![]));
    workers.applied(&pod(1, "a", running()));
    assert_eq!(news(&workers), [(1, State::Running)]);
    // One that began after it does.
    workers.listing();
    workers.applied(&pod(1, "a", running()));
    workers.synced();
    assert_eq!(news(&workers), [(0, State::Gone)]);
    assert_eq!(states(&workers), [State::Running]);
}

#[test]
fn what_the_watch_showed_meanwhile_is_as_the_watch_says() {
    let workers = told();
    let making = workers.make(&key(0)).unwrap();
    workers.applied(&pod(0, "a", running()));
    workers.deleted(&pod(0, "a", running()));
    making.exists();
    assert_eq!(states(&workers), []);
}

#[test]
fn how_long_it_has_ended_is_counted_from_when_it_was_seen() {
    let workers = told();
    workers.applied(&pod(0, "a", ended(0)));
    let since = workers.find(&key(0)).unwrap().ended_since.unwrap();
    // Its node's clock says years ago, or that it will be.
    assert!(since.elapsed() < Duration::from_secs(600));
    workers.applied(&pod(0, "a", ended(1)));
    assert_eq!(workers.find(&key(0)).unwrap().ended_since, Some(since));
}

use super::*;
use crate::task::Worker;

const NOW: Millis = 1_800_000_000_000;

fn defaults() -> Defaults {
    Defaults {
        image: "debian".into(),
        command: vec!["true".into()],
        timeout_seconds: 60,
        max_attempts: 2,
        max_count: 10,
        retention: 7 * 24 * 3_600_000,
        pods: None,
    }
}

fn entry(sequence: u64) -> Option<EntryId> {
    Some(EntryId { millis: u64::try_from(NOW).unwrap(), sequence })
}

fn event(direction: Direction, count: u32, entry: Option<EntryId>) -> ScaleEvent {
    ScaleEvent { task_id: "t".into(), direction, count, spec: GivenSpec::default(), entry }
}

fn put(decision: Decision) -> (Record, Vec<u32>, bool) {
    match decision {
        Decision::Put { record, touched, unchanged } => (record, touched, unchanged),
        other => panic!("{other:?}"),
    }
}

fn dead(decision: Decision) -> String {
    match decision {
        Decision::Dead(reason) => reason.to_string(),
        other => panic!("{other:?}"),
    }
}

fn live(count: u32) -> Record {
    put(apply(None, &event(Direction::Up, count, entry(1)), &defaults(), NOW)).0
}

fn phases(record: &Record) -> Vec<(WorkerPhase, u32)> {
    record.workers.iter().map(|worker| (worker.phase, worker.attempt)).collect()
}

#[test]
fn the_first_event_fixes_what_runs() {
    let mut first = event(Direction::Up, 2, entry(1));
    first.spec.command = Some(vec!["make".into()]);
    first.spec.context.repository = "r".into();
    let (record, touched, unchanged) = put(apply(None, &first, &defaults(), NOW));
    assert_eq!((record.version, record.wanted, record.phase, unchanged), (1, 2, Phase::Live, false));
    assert_eq!(record.spec.command, ["make"]);
    assert_eq!((record.spec.image.as_str(), record.spec.timeout_seconds, record.spec.max_attempts), ("debian", 60, 2));
    assert_eq!(record.spec.repository, "r");
    assert_eq!(touched, [0, 1]);
    assert_eq!(phases(&record), [(WorkerPhase::Queued, 1), (WorkerPhase::Queued, 1)]);

    let mut later = event(Direction::Up, 3, entry(2));
    later.spec.command = Some(vec!["make".into()]);
    later.spec.context.repository = "another; context never contradicts".into();
    let (record, touched, _) = put(apply(Some(&record), &later, &defaults(), NOW));
    assert_eq!((record.version, record.wanted, touched, record.last_entry), (2, 3, vec![2], entry(2)));
    assert_eq!(record.spec.repository, "r");

    later.entry = entry(3);
    later.spec.command = Some(vec!["rm".into()]);
    let reason = dead(apply(Some(&record), &later, &defaults(), NOW));
    assert_eq!(reason, r#"`command` contradicts the task's first event: it was ["make"], now ["rm"]"#);
}

#[test]
fn values_of_variables_are_not_told() {
    let record = live(1);
    let mut later = event(Direction::Up, 2, entry(2));
    later.spec.env = Some([("TOKEN".to_owned(), "hush".to_owned())].into());
    let reason = dead(apply(Some(&record), &later, &defaults(), NOW));
    assert_eq!(reason, "`env` contradicts the task's first event: variable `TOKEN` differs");
}

#[test]
fn a_target_that_is_there_is_already_processed() {
    let record = live(3);
    // The same entry again: acknowledged, nothing written.
    assert_eq!(apply(Some(&record), &event(Direction::Up, 3, entry(1)), &defaults(), NOW), Decision::AlreadyProcessed);
    // A later one: noted, so that what lies between is out of order.
    let (noted, touched, unchanged) = put(apply(Some(&record), &event(Direction::Up, 2, entry(5)), &defaults(), NOW));
    assert_eq!((noted.wanted, noted.last_entry, unchanged, touched.len()), (3, entry(5), true, 0));
    let (_, _, unchanged) = put(apply(Some(&record), &event(Direction::Down, 3, entry(5)), &defaults(), NOW));
    assert!(unchanged);
    // By gRPC there is nothing to note.
    assert_eq!(apply(Some(&record), &event(Direction::Up, 3, None), &defaults(), NOW), Decision::AlreadyProcessed);
    let reason = dead(apply(Some(&noted), &event(Direction::Up, 9, entry(4)), &defaults(), NOW));
    assert!(reason.starts_with("out of order: entry 1800000000000-4 is older than 1800000000000-5"), "{reason}");
}

#[test]
fn scale_down_stops_from_the_highest_index_and_scale_up_starts_new_attempts() {
    let mut record = live(4);
    record.workers[3].phase = WorkerPhase::Succeeded;
    record.workers[1].phase = WorkerPhase::Running;
    // Index 3 has succeeded: three are live, and those are what is counted.
    let (same, touched, _) = put(apply(Some(&record), &event(Direction::Down, 3, entry(2)), &defaults(), NOW));
    assert_eq!((touched.len(), same.wanted, same.workers.clone()), (0, 3, record.workers.clone()));
    let (mut record, touched, _) = put(apply(Some(&record), &event(Direction::Down, 1, entry(2)), &defaults(), NOW));
    assert_eq!(touched, [2, 1]);
    assert_eq!(record.phase, Phase::Live);
    let stopping = WorkerPhase::Stopping;
    let expected = [WorkerPhase::Queued, stopping, stopping, WorkerPhase::Succeeded];
    assert_eq!(record.workers.iter().map(|worker| worker.phase).collect::<Vec<_>>(), expected);

    record.workers[1].phase = WorkerPhase::Stopped;
    let (record, touched, _) = put(apply(Some(&record), &event(Direction::Up, 4, entry(3)), &defaults(), NOW));
    // Index 1 again as a new attempt; index 2 is waited for.
    assert_eq!(touched, [1]);
    assert_eq!(phases(&record)[1..3], [(WorkerPhase::Queued, 2), (stopping, 1)]);
    assert_eq!(record.workers.len(), 4);
}

#[test]
fn cancel_is_final() {
    let mut cancel = event(Direction::Down, 0, entry(2));
    cancel.spec.context.reason = "not needed".into();
    let (record, touched, _) = put(apply(Some(&live(2)), &cancel, &defaults(), NOW));
    assert_eq!((record.phase, record.wanted, touched), (Phase::Cancelling, 0, vec![1, 0]));
    assert_eq!(record.error.as_deref(), Some("cancelled: not needed"));
    for phase in [Phase::Cancelling, Phase::Cancelled, Phase::Succeeded, Phase::Failed] {
        let mut record = record.clone();
        record.phase = phase;
        for (direction, count, entry) in
            [(Direction::Up, 5, entry(3)), (Direction::Down, 0, None), (Direction::Up, 99, entry(0))]
        {
            let mut event = event(direction, count, entry);
            event.spec.image = Some("another".into());
            assert_eq!(apply(Some(&record), &event, &defaults(), NOW), Decision::AlreadyProcessed, "{phase:?}");
        }
    }
}

#[test]
fn no_workers() {
    let (record, touched, _) = put(apply(None, &event(Direction::Up, 0, entry(1)), &defaults(), NOW));
    assert_eq!(
        (record.phase, record.ended_at, touched.len(), record.workers.len()),
        (Phase::Succeeded, Some(NOW), 0, 0)
    );
    // A cancel that comes first wins over the scale_up that comes later.
    let (record, ..) = put(apply(None, &event(Direction::Down, 0, None), &defaults(), NOW));
    assert_eq!(record.phase, Phase::Cancelled);
    let late = event(Direction::Up, 3, entry(1));
    assert_eq!(apply(Some(&record), &late, &defaults(), NOW), Decision::AlreadyProcessed);
    let reason = dead(apply(None, &event(Direction::Down, 2, entry(1)), &defaults(), NOW));
    assert_eq!(reason, "unknown task `t`: there is nothing to scale down");
}

#[test]
fn what_cannot_be_applied() {
    let reason = dead(apply(None, &event(Direction::Up, 11, entry(1)), &defaults(), NOW));
    assert_eq!(reason, "`pod_count` is 11; accepted: 0 to 10");
    let old = Some(EntryId { millis: u64::try_from(NOW - defaults().retention - 1).unwrap(), sequence: 0 });
    let reason = dead(apply(None, &event(Direction::Up, 1, old), &defaults(), NOW));
    assert!(reason.contains("older than the retention of task records (604800 s)"), "{reason}");
}

#[test]
fn a_record_survives_its_storage() {
    let mut record = live(1);
    record.workers.push(Worker::queued(1, 7));
    let text = serde_json::to_string(&record).unwrap();
    assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), record);
}

#[test]
fn a_pod_needs_an_image_and_a_command() {
    let classes = ["big", "small"].map(str::to_owned).into();
    let open = Defaults { image: String::new(), command: Vec::new(), pods: Some(Pods { classes }), ..defaults() };
    let up = |image: &str, command: &[&str], class: &str| {
        let mut event = event(Direction::Up, 1, entry(1));
        event.spec.image = Some(image.to_owned()).filter(|image| !image.is_empty());
        event.spec.command =
            Some(command.iter().map(|word| (*word).to_owned()).collect()).filter(|_| !command.is_empty());
        event.spec.resource_class = Some(class.to_owned()).filter(|class| !class.is_empty());
        event
    };
    let refused =
        |image: &str, command: &[&str], class: &str| dead(apply(None, &up(image, command, class), &open, NOW));
    let problem = refused("debian:12", &[], "");
    assert!(problem.starts_with("`command` is missing") && problem.contains("registry credentials"), "{problem}");
    assert!(problem.contains("--default-command"), "{problem}");
    let problem = refused("", &["true"], "");
    assert!(problem.starts_with("`image` is missing") && problem.contains("--worker-image"), "{problem}");
    let problem = refused("Debian", &["true"], "");
    assert!(
        problem.starts_with("`image` ") && problem.contains("lower case") && problem.contains("ghcr.io"),
        "{problem}"
    );
    let problem = refused("debian", &["true"], "huge");
    assert!(
        problem.starts_with("`resource_class` is \"huge\"") && problem.contains("big, small, or none"),
        "{problem}"
    );

    assert_eq!(put(apply(None, &up("debian", &["true"], "big"), &open, NOW)).0.spec.resource_class, "big");
    // The configuration says what the event leaves open; a process needs none of it.
    let full = Defaults { pods: open.pods.clone(), ..defaults() };
    put(apply(None, &event(Direction::Up, 1, entry(1)), &full, NOW));
    put(apply(None, &up("Debian", &["true"], "huge"), &defaults(), NOW));
    // Nothing is to run.
    let (cancelled, ..) = put(apply(None, &event(Direction::Down, 0, entry(1)), &open, NOW));
    assert_eq!(cancelled.phase, Phase::Cancelled);
    let (none, ..) = put(apply(None, &event(Direction::Up, 0, entry(1)), &open, NOW));
    assert_eq!(none.phase, Phase::Succeeded);
}

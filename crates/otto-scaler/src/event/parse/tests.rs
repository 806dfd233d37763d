use std::collections::{BTreeMap, HashMap};

use otto_proto::v1::ScaleRequest;
use proptest::prelude::*;

use super::*;

const ENTRY: EntryId = EntryId { millis: 1_700_000_000_000, sequence: 7 };
const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

fn parse(fields: &[(&str, &str)]) -> Result<ScaleEvent, Invalid> {
    let fields: Fields =
        fields.iter().map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec())).collect();
    from_fields(ENTRY, &fields)
}

fn event(fields: &[(&str, &str)]) -> ScaleEvent {
    parse(fields).unwrap_or_else(|e| panic!("{fields:?}: {e}"))
}

/// The error's field and that its reason holds each of `parts`.
#[track_caller]
fn refused(fields: &[(&str, &str)], field: &str, parts: &[&str]) {
    let error = parse(fields).expect_err(&format!("{fields:?} was accepted"));
    assert_eq!(error.field, field, "{error}");
    for part in parts {
        assert!(error.reason.contains(part), "`{part}` is not in: {error}");
    }
    assert!(error.reason.contains("(accepted: "), "{error}");
}

fn map<const N: usize>(pairs: [(&str, &str); N]) -> BTreeMap<String, String> {
    pairs.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

#[test]
fn the_line_of_the_manual() {
    let event = event(&[("type", "scale_up"), ("pod_count", "3"), ("task_id", "task-123")]);
    assert_eq!((event.task_id.as_str(), event.direction, event.count), ("task-123", Direction::Up, 3));
    assert_eq!(event.entry, Some(ENTRY));
    assert_eq!(event.spec, GivenSpec::default());
}

#[test]
fn the_older_form() {
    let event = event(&[("type", "scale_down"), ("target_replicas", "0"), ("job_id", "old")]);
    assert_eq!((event.task_id.as_str(), event.direction, event.count), ("old", Direction::Down, 0));
}

#[test]
fn every_field() {
    let event = event(&[
        ("type", "scale_up"),
        ("worker_count", "2"),
        ("image", "alpine:3"),
        ("command", r#"["sh","-c"]"#),
        ("args", r#"["echo ü"]"#),
        ("env", r#"{"A":"1","B.c-d":""}"#),
        ("repository", "acme/app"),
        ("commit_sha", "abc"),
        ("triggered_by", "ann"),
        ("reason", "push"),
        ("timestamp", "2026-01-01T00:00:00Z"),
        ("priority", "-5"),
        ("timeout_seconds", "60"),
        ("max_attempts", "3"),
        ("resource_class", "large"),
        ("traceparent", TRACE),
        ("branch", "main"),
    ]);
    assert_eq!(event.task_id, "1700000000000-7");
    assert_eq!(event.count, 2);
    let spec = event.spec;
    assert_eq!(spec.image.as_deref(), Some("alpine:3"));
    assert_eq!(spec.command, Some(vec!["sh".into(), "-c".into()]));
    assert_eq!(spec.args, Some(vec!["echo ü".into()]));
    assert_eq!(spec.env, Some(map([("A", "1"), ("B.c-d", "")])));
    assert_eq!((spec.priority, spec.timeout_seconds, spec.max_attempts), (Some(-5), Some(60), Some(3)));
    assert_eq!(spec.resource_class.as_deref(), Some("large"));
    let context = spec.context;
    assert_eq!((context.repository.as_str(), context.commit_sha.as_str()), ("acme/app", "abc"));
    assert_eq!((context.triggered_by.as_str(), context.reason.as_str()), ("ann", "push"));
    assert_eq!(context.timestamp, "2026-01-01T00:00:00Z");
    assert_eq!(context.traceparent.as_deref(), Some(TRACE));
    assert_eq!(context.metadata, map([("branch", "main")]));
}

#[test]
fn without_a_count() {
    assert_eq!(event(&[("type", "scale_up")]).count, 1);
    refused(&[("type", "scale_down"), ("task_id", "t")], "pod_count", &["missing", "0 cancels"]);
    refused(&[("type", "scale_down"), ("payload", r#"{"taskId":"t"}"#)], "pod_count", &["missing"]);
    assert_eq!(event(&[("type", "scale_up"), ("pod_count", "0")]).count, 0);
}

#[test]
fn the_type() {
    refused(&[("task_id", "t")], "type", &["missing", "scale_up", "scale_down"]);
    refused(&[("type", "scale_sideways")], "type", &["`scale_sideways`", "scale_up"]);
    refused(&[("type", "")], "type", &["``"]);
    refused(&[], "type", &["missing"]);
}

#[test]
fn aliases_must_agree() {
    let same = [("type", "scale_up"), ("pod_count", "3"), ("target_replicas", "03"), ("worker_count", "3")];
    assert_eq!(event(&same).count, 3);
    refused(
        &[("type", "scale_up"), ("pod_count", "3"), ("target_replicas", "4")],
        "target_replicas",
        &["`4` disagrees with `pod_count`, which is `3`"],
    );
    refused(&[("type", "scale_up"), ("task_id", "a"), ("job_id", "b")], "job_id", &["disagrees with `task_id`"]);
    refused(&[("type", "scale_up"), ("type", "scale_down")], "type", &["disagrees"]);
    refused(&[("type", "scale_up"), ("x", "1"), ("x", "2")], "x", &["twice"]);
}

#[test]
fn counts() {
    for bad in ["", "-1", "+3", "3.0", "three", " 3", "4294967296", "99999999999999999999", "0x3", "³"] {
        refused(&[("type", "scale_up"), ("pod_count", bad)], "pod_count", &["0 to the configured maximum"]);
    }
    refused(&[("type", "scale_up"), ("timeout_seconds", "31536001")], "timeout_seconds", &["`31536001`", "31536000"]);
    refused(&[("type", "scale_up"), ("max_attempts", "0")], "max_attempts", &["1 to 100"]);
    refused(&[("type", "scale_up"), ("priority", "high")], "priority", &["`high`"]);
}

#[test]
fn commands_and_environment() {
    refused(&[("type", "scale_up"), ("command", "echo hi")], "command", &["`echo hi` is not JSON", "[\"sh\""]);
    refused(&[("type", "scale_up"), ("command", r#""ls""#)], "command", &["`ls`", "JSON array"]);
    refused(&[("type", "scale_up"), ("command", "[]")], "command", &["no program"]);
    refused(&[("type", "scale_up"), ("command", r#"[""]"#)], "command[0]", &["empty"]);
    refused(&[("type", "scale_up"), ("args", r#"["a",1]"#)], "args[1]", &["1 (accepted: a string)"]);
    refused(&[("type", "scale_up"), ("args", r#"["\u0000"]"#)], "args[0]", &["NUL"]);
    refused(&[("type", "scale_up"), ("env", "[]")], "env", &["JSON object"]);
    refused(&[("type", "scale_up"), ("env", r#"{"A":1}"#)], "env.A", &["a string"]);
    refused(&[("type", "scale_up"), ("env", r#"{"A":"1","A":"2"}"#)], "env.A", &["twice"]);
    refused(&[("type", "scale_up"), ("env", r#"{"A=B":"1"}"#)], "env.A=B", &["letters"]);
    refused(&[("type", "scale_up"), ("env", r#"{"":"1"}"#)], "env.", &["letters"]);
    refused(&[("type", "scale_up"), ("env", r#"{"OTTO_JOB_TASK_ID":"x"}"#)], "env.OTTO_JOB_TASK_ID", &["OTTO_"]);
    let long = format!(r#"{{"A":"{}"}}"#, "x".repeat(131_072));
    refused(&[("type", "scale_up"), ("env", &long)], "env.A", &["131,071"]);
    let deep = "[".repeat(100_000);
    refused(&[("type", "scale_up"), ("args", &deep)], "args", &["not JSON"]);
}

#[test]
fn task_ids() {
    refused(&[("type", "scale_up"), ("task_id", "")], "task_id", &["empty"]);
    refused(&[("type", "scale_up"), ("task_id", "a\nb")], "task_id", &["`a\\nb`", "control"]);
    let long = "x".repeat(254);
    refused(&[("type", "scale_up"), ("task_id", &long)], "task_id", &["(254 bytes)", "253"]);
    let accepted = "../../ö".to_owned() + &"x".repeat(245);
    assert_eq!(event(&[("type", "scale_up"), ("task_id", &accepted)]).task_id, accepted);
}

#[test]
fn payloads() {
    let camel = r#"{"taskId":"t","workerCount":2,"commitSha":"c","triggeredBy":"a","repository":"r","reason":"w",
        "buildConfig":{"image":"i","command":"[\"ls\"]","env.A":"1","priority":"3"},
        "metadata":{"k":"v","traceparent":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}}"#;
    let snake = camel
        .replace("taskId", "task_id")
        .replace("workerCount", "worker_count")
        .replace("commitSha", "commit_sha")
        .replace("triggeredBy", "triggered_by")
        .replace("buildConfig", "build_config");
    let first = event(&[("type", "scale_up"), ("payload", camel)]);
    assert_eq!(first, event(&[("type", "scale_up"), ("payload", &snake)]));
    assert_eq!((first.task_id.as_str(), first.count), ("t", 2));
    assert_eq!(first.spec.env, Some(map([("A", "1")])));
    assert_eq!(first.spec.command, Some(vec!["ls".to_owned()]));
    assert_eq!(first.spec.context.traceparent.as_deref(), Some(TRACE));
    assert_eq!(first.spec.context.metadata, map([("k", "v")]));

    // In the place of every other field, the type too; a type beside it decides.
    assert_eq!(event(&[("payload", "{}")]).direction, Direction::Up);
    assert_eq!(event(&[("payload", "{}")]).task_id, ENTRY.to_string());
    let down = event(&[("type", "scale_down"), ("payload", r#"{"taskId":"t","workerCount":"0"}"#)]);
    assert_eq!((down.direction, down.count), (Direction::Down, 0));
    assert_eq!(event(&[("payload", r#"{"workerCount":3.0,"taskId":null}"#)]).count, 3);

    let refused = |payload: &str, field: &str, parts: &[&str]| refused(&[("payload", payload)], field, parts);
    refused("nonsense", "payload", &["not JSON"]);
    refused("[]", "payload", &["ScaleRequest"]);
    refused(r#"{"taskid":"t"}"#, "payload.taskid", &["no field", "taskId"]);
    refused(r#"{"taskId":"t","task_id":"t"}"#, "payload.task_id", &["twice"]);
    refused(r#"{"taskId":""}"#, "payload.task_id", &["empty"]);
    refused(r#"{"taskId":5}"#, "payload.task_id", &["a string"]);
    refused(r#"{"workerCount":-1}"#, "payload.worker_count", &["`-1`"]);
    refused(r#"{"workerCount":1.5}"#, "payload.worker_count", &["1.5"]);
    refused(r#"{"workerCount":4294967296}"#, "payload.worker_count", &["4294967296"]);
    refused(r#"{"workerCount":"+1"}"#, "payload.worker_count", &["`+1`"]);
    refused(r#"{"buildConfig":{"cpu":"1"}}"#, "payload.build_config.cpu", &["not known", "env.NAME"]);
    refused(r#"{"buildConfig":{"env.OTTO_X":"1"}}"#, "payload.build_config.env.OTTO_X", &["OTTO_"]);
    refused(r#"{"metadata":{"a":"1","a":"1"}}"#, "payload.metadata.a", &["twice"]);
    refused(r#"{"metadata":{"a":null}}"#, "payload.metadata.a", &["null"]);
}

#[test]
fn a_payload_and_fields_must_agree() {
    let fields = [("task_id", "t"), ("payload", r#"{"taskId":"t"}"#), ("pod_count", "2")];
    assert_eq!((event(&fields).task_id.as_str(), event(&fields).count), ("t", 2));
    refused(&[("task_id", "u"), ("payload", r#"{"taskId":"t"}"#)], "payload.task_id", &["disagrees with `task_id`"]);
}

#[test]
fn requests() {
    let message = ScaleRequest {
        task_id: "t".into(),
        repository: "r".into(),
        worker_count: 0,
        build_config: HashMap::from([("args".into(), r#"["x"]"#.into()), ("env.A".into(), "1".into())]),
        metadata: HashMap::from([("traceparent".into(), TRACE.into()), ("k".into(), "v".into())]),
        ..ScaleRequest::default()
    };
    let event = from_request(message.clone(), Direction::Down).unwrap();
    assert_eq!((event.task_id.as_str(), event.direction, event.count), ("t", Direction::Down, 0));
    assert_eq!(event.entry, None);
    assert_eq!(event.spec.args, Some(vec!["x".to_owned()]));
    assert_eq!(event.spec.env, Some(map([("A", "1")])));
    assert_eq!(event.spec.context.repository, "r");
    assert_eq!(event.spec.context.metadata, map([("k", "v")]));

    let refused = |change: &dyn Fn(&mut ScaleRequest), field: &str| {
        let mut message = message.clone();
        change(&mut message);
        let error = from_request(message, Direction::Up).unwrap_err();
        assert_eq!(error.field, field, "{error}");
    };
    refused(&|m| m.task_id.clear(), "task_id");
    refused(&|m| m.worker_count = -1, "worker_count");
    refused(&|m| drop(m.build_config.insert("env".into(), "{}".into())), "build_config.env");
    refused(&|m| drop(m.build_config.insert("env.".into(), String::new())), "build_config.env.");
    refused(&|m| drop(m.build_config.insert("priority".into(), "x".into())), "build_config.priority");
    refused(&|m| m.reason = "x".repeat(5000), "reason");
    refused(&|m| m.reason = "x".repeat(MAX_BYTES), "event");
}

#[test]
fn garbage() {
    let entry =
        |name: &[u8], value: &[u8]| vec![(b"type".to_vec(), b"scale_up".to_vec()), (name.to_vec(), value.to_vec())];
    let megabyte: Vec<u8> = (0..1_048_576_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let error = from_fields(ENTRY, &entry(b"junk", &megabyte)).unwrap_err();
    assert_eq!(error.field, "event");
    assert!(error.reason.contains("1048592 bytes") && error.reason.len() < 200, "{error}");

    let error = from_fields(ENTRY, &entry(b"junk", &megabyte[..1000])).unwrap_err();
    assert!(error.reason.contains("not UTF-8") && error.reason.len() < 1000, "{error}");
    let error = from_fields(ENTRY, &entry(b"pod_count", b"\xff\xfe")).unwrap_err();
    assert_eq!(error.field, "pod_count");
    let error = from_fields(ENTRY, &entry(b"\xff\xfe", b"1")).unwrap_err();
    assert!(error.reason.contains("field name"), "{error}");
    let many: Fields = (0..2000).map(|i| (format!("f{i}").into_bytes(), Vec::new())).collect();
    assert!(from_fields(ENTRY, &many).unwrap_err().reason.contains("2000 fields"));
    assert!(from_fields(ENTRY, &many[..300]).unwrap_err().reason.contains("256"));
}

#[test]
fn a_malformed_trace_context_is_ignored() {
    for bad in ["", "x", "00-0-0-00", &TRACE.to_uppercase(), &format!("{TRACE}-x"), &TRACE.replace("00-0", "ff-0")] {
        assert_eq!(event(&[("type", "scale_up"), ("traceparent", bad)]).spec.context.traceparent, None, "{bad}");
    }
    let zeros = "00-00000000000000000000000000000000-b7ad6b7169203331-01";
    assert_eq!(event(&[("type", "scale_up"), ("traceparent", zeros)]).spec.context.traceparent, None);
}

#[test]
fn which_entries_name_their_task() {
    let names = |name: &str, value: &str| names_task(&[(name.into(), value.into())]);
    assert!(names("task_id", "t") && names("job_id", "t") && names("payload", r#"{"taskId":"t"}"#));
    assert!(!names("type", "scale_up") && !names("payload", "{}") && !names("payload", "junk"));
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    let known = prop::sample::select(vec![
        "type",
        "task_id",
        "job_id",
        "pod_count",
        "worker_count",
        "target_replicas",
        "image",
        "command",
        "args",
        "env",
        "repository",
        "priority",
        "timeout_seconds",
        "max_attempts",
        "traceparent",
        "payload",
    ]);
    prop_oneof![3 => known.prop_map(|name| name.as_bytes().to_vec()), 1 => prop::collection::vec(any::<u8>(), 0..20)]
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..300),
        r#"[\[\]{}",:a-z0-9\\ .eE+-]{0,60}"#.prop_map(String::into_bytes),
        Just(b"scale_up".to_vec()),
        "[0-9]{1,12}".prop_map(String::into_bytes),
    ]
}

proptest! {
    /// Whatever is in the stream: an event within its limits, or an error that can be shown.
    #[test]
    fn any_bytes(fields in prop::collection::vec((name(), bytes()), 0..12)) {
        match from_fields(ENTRY, &fields) {
            Ok(event) => {
                prop_assert!(!event.task_id.is_empty() && event.task_id.len() <= 253);
                prop_assert!(!event.spec.env.unwrap_or_default().keys().any(|name| name.starts_with("OTTO_")));
                prop_assert!(event.spec.command.is_none_or(|command| !command.is_empty()));
            }
            Err(error) => {
                prop_assert!(error.to_string().len() < 3000, "{}", error);
                prop_assert!(!error.to_string().chars().any(|c| c.is_control()), "{:?}", error);
            }
        }
    }

    /// The order of the fields means nothing.
    #[test]
    fn order_is_free(count in 0_u32..9, seed in any::<u64>()) {
        let mut fields: Fields = [("type", "scale_up".to_owned()), ("pod_count", count.to_string()),
            ("task_id", "t".into()), ("env", r#"{"A":"1"}"#.into()), ("x", "y".into())]
            .into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        let straight = from_fields(ENTRY, &fields);
        let length = fields.len();
        for i in 0..length {
            fields.swap(i, (seed >> (i * 8)) as usize % length);
        }
        prop_assert_eq!(from_fields(ENTRY, &fields), straight);
    }
}

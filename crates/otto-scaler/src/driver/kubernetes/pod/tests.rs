use std::sync::Arc;

use std::time::Duration;

use clap::Parser;
use proptest::prelude::*;
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

use super::*;
use crate::driver::kubernetes::Settings;
use crate::driver::kubernetes::seen::SeenPod;
use crate::task::Spec;

mod server;

const UID: &str = "8d1c0d6e-54a5-4d1f-9f5e-0a3f0d8f0001";

#[derive(clap::Parser)]
struct Flags {
    #[command(flatten)]
    settings: Settings,
}

/// Options with these flags besides those that are needed.
pub(super) fn options(flags: &[&str]) -> Options {
    let needed = ["test", "--agent-image", "ghcr.io/acme/otto-worker:1"];
    Options {
        settings: Flags::try_parse_from([&needed, flags].concat()).unwrap().settings,
        log_server: "http://otto-log-ingest:50051".into(),
        worker_image: String::new(),
        worker_args: Vec::new(),
        start_patience: Duration::from_secs(300),
        stop_grace: Duration::from_secs(10),
        drain_limit: Duration::from_secs(86_400),
    }
}

pub(super) fn maker_of(options: &Options, template: &str, own: &[(&str, &str)]) -> anyhow::Result<PodMaker> {
    let own = own.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    PodMaker::new(options, "jobs", Template::parse(template).map_err(anyhow::Error::msg)?, own)
}

pub(super) fn maker(template: &str) -> PodMaker {
    maker_of(&options(&[]), template, &[]).unwrap()
}

fn launch() -> Launch {
    let spec = Spec {
        image: "debian:12".into(),
        command: vec!["sh".into(), "-c".into()],
        args: vec!["echo $HOME $(date)".into()],
        env: [("A".to_owned(), "a$b".to_owned()), ("OTTO_EVIL".to_owned(), "1".to_owned())].into(),
        repository: "acme/shop".into(),
        timeout_seconds: 60,
        ..Spec::default()
    };
    let key = WorkerKey { task_id: "build/12".into(), index: 2, attempt: 3 };
    Launch {
        key,
        spec: spec.into(),
        traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()),
    }
}

fn pod_of(maker: &PodMaker, launch: &Launch) -> Value {
    serde_json::from_slice(&maker.make(launch, UID).unwrap()).unwrap()
}

fn problem(maker: &PodMaker, launch: &Launch) -> String {
    let outcome = maker.make(launch, UID).unwrap_err();
    let class = if outcome.message.starts_with("the image") { Class::Image } else { Class::Config };
    assert_eq!(outcome.class, class);
    outcome.message
}

#[test]
fn the_whole_pod() {
    let name = "otto-build-12-".to_owned() + &worker_name(&launch().key)["otto-build-12-".len()..];
    let flags = [
        "--run-dir=/otto/run",
        "--spool-dir=/otto/run/spool",
        "--namespace=jobs",
        "--log-server=http://otto-log-ingest:50051",
    ];
    let worker = ["--task-id=build/12".to_owned(), format!("--worker-id={name}"), format!("--pod-name={name}")];
    let args = |verb: &[&str], own: &[&str], last: &[&str]| {
        let words = [verb, &flags, own].concat().into_iter().map(str::to_owned);
        words.chain(worker.clone()).chain(last.iter().map(|word| (*word).to_owned())).collect::<Vec<String>>()
    };
    let node = json!({"name": "OTTO_NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}});
    let mounts = json!([{"name": "otto", "mountPath": "/otto"}]);
    let expected = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "labels": {
                "app.kubernetes.io/name": "otto-worker",
                "app.kubernetes.io/managed-by": "ottoscaler",
                "ottoscaler.io/task": task_label("build/12"),
                "ottoscaler.io/index": "2",
                "ottoscaler.io/attempt": "3",
            },
            "annotations": {
                "ottoscaler.io/task-id": "build/12",
                "ottoscaler.io/traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            },
            "ownerReferences": [{"apiVersion": "v1", "kind": "ConfigMap", "name": "ottoscaler-anchor", "uid": UID}],
        },
        "spec": {
            "restartPolicy": "Never",
            "enableServiceLinks": false,
            "automountServiceAccountToken": false,
            "terminationGracePeriodSeconds": 40,
            "activeDeadlineSeconds": 300 + 60 + 10 + 86_400,
            "securityContext": {"fsGroup": 65532, "fsGroupChangePolicy": "OnRootMismatch", "seccompProfile": {"type": "RuntimeDefault"}},
            "volumes": [{"name": "otto", "emptyDir": {"sizeLimit": "1152Mi"}}],
            "containers": [
                {
                    "name": "otto",
                    "image": "ghcr.io/acme/otto-worker:1",
                    "command": ["/otto-worker"],
                    "args": args(&["drain", "--wait"], &["--drain-timeout=86400s"], &[]),
                    "terminationMessagePolicy": "FallbackToLogsOnError",
                    "lifecycle": {"postStart": {"exec": {"command": ["/otto-worker", "install", "/otto/bin"]}}},
                    "env": [node.clone()],
                    "volumeMounts": mounts,
                    "resources": {
                        "requests": {"cpu": "10m", "memory": "16Mi"},
                        "limits": {"cpu": "1", "memory": "128Mi"},
                    },
                    "securityContext": {
                        "runAsNonRoot": true,
                        "runAsUser": 65532,
                        "runAsGroup": 65532,
                        "allowPrivilegeEscalation": false,
                        "readOnlyRootFilesystem": true,
                        "capabilities": {"drop": ["ALL"]},
                    },
                },
                {
                    "name": "job",
                    "image": "debian:12",
                    "command": ["/otto/bin/otto-worker"],
                    "args": args(
                        &["run", "--allow-privilege-escalation", "--any-signal-stops"],
                        &[
                            "--exit-file=/dev/termination-log",
                            "--grace=10000ms",
                            "--hand-over=2s",
                            "--drain-timeout=86400s",
                        ],
                        &[
                            "--set-env=OTTO_JOB_INDEX=2",
                            "--set-env=OTTO_JOB_ATTEMPT=3",
                            "--set-env=OTTO_JOB_REPOSITORY=acme/shop",
                            "--set-env=OTTO_JOB_COMMIT_SHA=",
                            "--set-env=OTTO_JOB_TRIGGERED_BY=",
                            "--set-env=OTTO_JOB_REASON=",
                            "--set-env=OTTO_JOB_TIMESTAMP=",
                            "--traceparent=00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
                            "--timeout=60s",
                            "--",
                            "sh",
                            "-c",
                            "echo $$HOME $$(date)",
                        ],
                    ),
                    "env": [
                        node,
                        {"name": "OTTO_JOB_LAUNCH_ID", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}},
                        {"name": "OTTO_AGENT_ENV"},
                        {"name": "A", "value": "a$$b"},
                    ],
                    "volumeMounts": mounts,
                    "securityContext": {"allowPrivilegeEscalation": false},
                },
            ],
        },
    });
    let made = maker("").make(&launch(), UID).unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&made).unwrap(), expected);
    assert!(made.len() < 3_300, "{} bytes", made.len());
}

#[test]
fn what_a_template_adds() {
    let template = r#"
metadata:
  labels: {team: shop}
  annotations: {cluster-autoscaler.kubernetes.io/safe-to-evict: "false"}
spec:
  automountServiceAccountToken: true
  serviceAccountName: builder
  volumes: [{name: cache, emptyDir: {}}]
  containers:
  - name: proxy
    image: proxy:1
  - name: otto
    resources: {limits: {cpu: null}}
  - name: job
    env: [{name: A, value: template}, {name: B, value: $(OTTO_JOB_INDEX)}]
    volumeMounts: [{name: cache, mountPath: /cache}]
    securityContext: {privileged: true}
classes:
  big: {metadata: {labels: {team: big}}, spec: {nodeSelector: {pool: big}}}
"#;
    let maker = maker(template);
    let pod = pod_of(&maker, &launch());
    let containers = &pod["spec"]["containers"];
    assert_eq!(pod["metadata"]["labels"]["team"], "shop");
    assert_eq!(pod["metadata"]["annotations"]["cluster-autoscaler.kubernetes.io/safe-to-evict"], "false");
    assert_eq!(pod["spec"]["automountServiceAccountToken"], true);
    assert_eq!(pod["spec"]["volumes"].as_array().unwrap().len(), 2);
    let names: Vec<_> = containers.as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["otto", "job", "proxy"]);
    assert_eq!(containers[0]["resources"]["limits"], json!({"memory": "128Mi"}));
    // The API refuses a privileged container that may not gain privileges.
    assert_eq!(containers[1]["securityContext"], json!({"privileged": true}));
    assert_eq!(containers[1]["volumeMounts"][1], json!({"name": "cache", "mountPath": "/cache"}));
    // The event's own value wins; the template's variables can refer to ours, which come before.
    let env = containers[1]["env"].as_array().unwrap();
    let of = |name: &str| env.iter().filter(|one| one["name"] == name).collect::<Vec<_>>();
    assert_eq!(of("A"), [&json!({"name": "A", "value": "a$$b"})]);
    assert_eq!(of("B"), [&json!({"name": "B", "value": "$(OTTO_JOB_INDEX)"})]);
    let at = |name: &str| env.iter().position(|one| one["name"] == name).unwrap();
    assert!(at("OTTO_JOB_INDEX") < at("B"));
    // What refers to a variable after it gets the event's value of it.
    let base = "spec: {containers: [{name: job, env: [{name: A, value: x}, {name: PATH_OF_A, value: $(A)/y}]}]}";
    let env = pod_of(&self::maker(base), &launch())["spec"]["containers"][1]["env"].clone();
    let place = env.as_array().unwrap().iter().position(|one| one["name"] == "A").unwrap();
    assert_eq!((&env[place]["value"], &env[place + 1]["value"]), (&json!("a$$b"), &json!("$(A)/y")), "{env}");
    let told =
        ["TASK_ID", "WORKER_ID", "INDEX", "ATTEMPT", "REPOSITORY", "COMMIT_SHA", "TRIGGERED_BY", "REASON", "TIMESTAMP"];
    assert!(told.iter().all(|name| of(&format!("OTTO_JOB_{name}")).len() == 1), "{env:?}");
    assert!(!containers[1]["args"].to_string().contains("--set-env"), "{containers}");

    let mut big = launch();
    Arc::make_mut(&mut big.spec).resource_class = "big".into();
    let big = pod_of(&maker, &big);
    assert_eq!(big["spec"]["nodeSelector"], json!({"pool": "big"}));
    assert_eq!(big["metadata"]["labels"]["team"], "big");
    let mut unknown = launch();
    Arc::make_mut(&mut unknown.spec).resource_class = "huge".into();
    let problem = problem(&maker, &unknown);
    assert!(problem.contains("huge") && problem.contains("accepted: big, or none"), "{problem}");
}

#[test]
fn deadlines() {
    let deadline = |flags: &[&str], timeout: u32| {
        let mut launch = launch();
        Arc::make_mut(&mut launch.spec).timeout_seconds = timeout;
        pod_of(&maker_of(&options(flags), "", &[]).unwrap(), &launch)["spec"]["activeDeadlineSeconds"].clone()
    };
    assert_eq!(deadline(&[], 0), 7 * 86_400);
    assert_eq!(deadline(&["--max-lifetime", "90m"], 0), 5_400);
    assert_eq!(deadline(&["--max-lifetime", "0s"], 0), Value::Null);
    assert_eq!(deadline(&["--max-lifetime", "0s"], 7), 300 + 7 + 10 + 86_400);
    assert_eq!(deadline(&[], u32::MAX), i32::MAX);
    let times = Times { start: 0, grace: 10, drain: 60, life: 1_000 };
    assert_eq!((times.deadline(50), times.deadline(0)), (Some(1_050), Some(1_000)));
    let times = Times { life: 0, ..times };
    assert_eq!((times.deadline(50), times.deadline(0)), (None, None));
}

#[test]
fn credentials() {
    let spec = |flags: &[&str]| pod_of(&maker_of(&options(flags), "", &[]).unwrap(), &launch())["spec"].clone();
    let secret = spec(&["--worker-token-secret", "otto-token/worker"]);
    let expected = json!({"name": "otto-token", "secret": {
        "secretName": "otto-token", "defaultMode": 0o444, "items": [{"key": "worker", "path": "token"}],
    }});
    assert_eq!(secret["volumes"][1], expected);
    for container in 0..2 {
        let container = &secret["containers"][container];
        assert_eq!(
            container["volumeMounts"][1],
            json!({"name": "otto-token", "mountPath": "/otto-token", "readOnly": true})
        );
        assert!(container["args"].as_array().unwrap().contains(&json!("--auth-token-file=/otto-token/token")));
    }
    let projected = spec(&["--worker-token-audience", "otto"]);
    let expected = json!({"name": "otto-token", "projected": {"sources": [
        {"serviceAccountToken": {"audience": "otto", "expirationSeconds": 3600, "path": "token"}},
    ]}});
    assert_eq!(projected["volumes"][1], expected);
}

#[test]
fn the_agent_reports_where_the_scaler_does() {
    let own = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://otel:4317"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=secret"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/etc/ca.pem"),
        ("OTEL_SERVICE_NAME", "otto-scaler"),
        ("RUST_LOG", "debug"),
        ("SECRET", "x"),
        ("OTTO_REDIS_URL", "redis://:pw@h"),
    ];
    let template = "spec: {containers: [{name: job, env: [{name: RUST_LOG, value: warn}]}]}";
    let env = |template: &str, launch: &Launch, container: usize| {
        let pod = pod_of(&maker_of(&options(&[]), template, &own).unwrap(), launch);
        let env = pod["spec"]["containers"][container]["env"].as_array().unwrap().clone();
        env.into_iter().map(|one| (one["name"].as_str().unwrap().to_owned(), one["value"].clone())).collect::<Vec<_>>()
    };
    let has = |env: &[(String, Value)], name: &str, value: &str| env.contains(&(name.to_owned(), json!(value)));
    let plain = env("", &launch(), 1);
    assert!(has(&plain, "OTEL_EXPORTER_OTLP_ENDPOINT", "http://otel:4317"), "{plain:?}");
    assert!(has(&plain, "OTTO_AGENT_ENV", "OTEL_EXPORTER_OTLP_ENDPOINT,RUST_LOG"), "{plain:?}");
    let withheld = ["HEADERS", "CERTIFICATE", "OTEL_SERVICE_NAME", "SECRET", "REDIS"];
    assert!(!plain.iter().any(|(name, _)| withheld.iter().any(|part| name.contains(part))), "{plain:?}");
    assert!(has(&env("", &launch(), 0), "RUST_LOG", "debug"));

    let templated = env(template, &launch(), 1);
    assert!(has(&templated, "OTTO_AGENT_ENV", "OTEL_EXPORTER_OTLP_ENDPOINT") && has(&templated, "RUST_LOG", "warn"));

    // The job's own setting wins, and stays the job's.
    let mut mine = launch();
    Arc::make_mut(&mut mine.spec).env.insert("RUST_LOG".into(), "trace".into());
    let mine = env("", &mine, 1);
    assert!(has(&mine, "OTTO_AGENT_ENV", "OTEL_EXPORTER_OTLP_ENDPOINT") && has(&mine, "RUST_LOG", "trace"), "{mine:?}");
    assert_eq!(mine.iter().filter(|(name, _)| name == "RUST_LOG").count(), 1);

    // What the template gives the job's container can be for the agent, too.
    let template =
        "spec: {containers: [{name: job, env: [{name: OTTO_AGENT_ENV, value: 'H,I'}, {name: H, value: x}]}]}";
    let templated = env(template, &launch(), 1);
    assert!(has(&templated, "OTTO_AGENT_ENV", "H,I,OTEL_EXPORTER_OTLP_ENDPOINT,RUST_LOG") && has(&templated, "H", "x"));
}

#[test]
fn flags_for_every_agent() {
    let mut options = options(&[]);
    options.worker_args =
        ["--spool-bytes=64MiB", "--mask-env", "PASS$WORD", "--drain-timeout=9s"].map(str::to_owned).to_vec();
    let spec = pod_of(&maker_of(&options, "", &[]).unwrap(), &launch())["spec"].clone();
    assert_eq!(spec["volumes"][0]["emptyDir"]["sizeLimit"], "192Mi");
    for container in 0..2 {
        let args = spec["containers"][container]["args"].as_array().unwrap();
        let drains: Vec<_> = args.iter().filter(|arg| arg.as_str().unwrap().starts_with("--drain-timeout")).collect();
        assert_eq!(drains, ["--drain-timeout=9s"]);
        assert!(args.contains(&json!("--mask-env")) && args.contains(&json!("PASS$$WORD")), "{args:?}");
    }
    options.worker_args = vec!["--spool-bytes".into(), "much".into()];
    let problem = format!("{:#}", maker_of(&options, "", &[]).unwrap_err());
    assert!(problem.contains("--spool-bytes") && problem.contains("64KiB"), "{problem}");
}

/// The real agent reads every flag and its value before it comes to `--help`.
#[test]
fn the_agent_knows_its_flags() {
    let agent = otto_testkit::binary("otto-worker").unwrap();
    let pod = pod_of(&maker_of(&options(&["--worker-token-audience", "otto"]), "", &[]).unwrap(), &launch());
    for container in 0..2 {
        let args = pod["spec"]["containers"][container]["args"].as_array().unwrap();
        let words = args.iter().map(|arg| arg.as_str().unwrap()).take_while(|word| *word != "--");
        let asked = std::process::Command::new(&agent).args(words).arg("--help").output().unwrap();
        assert!(asked.status.success(), "{}", String::from_utf8_lossy(&asked.stderr));
    }
}

#[test]
fn settings_that_cannot_be() {
    let refused = |change: &dyn Fn(&mut Options)| {
        let mut options = options(&[]);
        change(&mut options);
        format!("{:#}", maker_of(&options, "", &[]).unwrap_err())
    };
    for (problem, expected) in [
        (refused(&|options| options.settings.agent_image = None), "--agent-image is missing"),
        (refused(&|options| options.settings.agent_image = Some("A".into())), "--agent-image `A` has"),
        (refused(&|options| options.worker_image = "a:".into()), "--worker-image `a:` has an empty tag"),
        (refused(&|options| options.log_server = "otto:1".into()), "--worker-log-server `otto:1`"),
        (refused(&|options| options.settings.worker_token_secret = Some("x".into())), "accepted: NAME/KEY"),
        (refused(&|options| options.settings.worker_token_secret = Some("X/y".into())), "accepted: NAME/KEY"),
        (
            refused(&|options| options.settings.worker_token_audience = Some(String::new())),
            "--worker-token-audience is empty",
        ),
    ] {
        assert!(problem.contains(expected), "{problem}");
    }
}

#[test]
fn launches_that_no_pod_can_run() {
    let maker = maker("");
    let refused = |change: &dyn Fn(&mut Launch)| {
        let mut launch = launch();
        change(&mut launch);
        problem(&maker, &launch)
    };
    for (problem, expected) in [
        (refused(&|launch| Arc::make_mut(&mut launch.spec).image.clear()), "the image `` is empty"),
        (refused(&|launch| Arc::make_mut(&mut launch.spec).image = "Debian".into()), "lower case"),
        (refused(&|launch| Arc::make_mut(&mut launch.spec).command.clear()), "no command"),
        (refused(&|launch| Arc::make_mut(&mut launch.spec).args.push("a\0b".into())), "NUL"),
        (
            refused(&|launch| _ = Arc::make_mut(&mut launch.spec).env.insert("A=B".into(), String::new())),
            "`A=B` cannot be the name",
        ),
        (
            refused(&|launch| _ = Arc::make_mut(&mut launch.spec).env.insert("..A".into(), String::new())),
            "`..A` cannot be the name",
        ),
        (
            refused(&|launch| _ = Arc::make_mut(&mut launch.spec).env.insert("1A".into(), String::new())),
            "`1A` cannot be the name",
        ),
        (
            refused(&|launch| _ = Arc::make_mut(&mut launch.spec).env.insert("A".into(), "\0".into())),
            "variable A holds a NUL",
        ),
        (
            refused(&|launch| Arc::make_mut(&mut launch.spec).args = vec!["x".repeat(130_000); 11]),
            "bytes, of which the cluster takes",
        ),
        (refused(&|launch| Arc::make_mut(&mut launch.spec).resource_class = "big".into()), "has no classes"),
    ] {
        assert!(problem.contains(expected), "{problem}");
    }
}

#[test]
fn a_template_cannot_imitate_a_slot() {
    let template = "spec: {containers: [{name: x, image: otto-slot-0-name, args: [otto-slot-1-labels]}]}";
    let pod = pod_of(&maker(template), &launch());
    assert_eq!(
        pod["spec"]["containers"][2],
        json!({"name": "x", "image": "otto-slot-0-name", "args": ["otto-slot-1-labels"]})
    );
    assert_eq!(pod["metadata"]["name"], worker_name(&launch().key));
}

#[test]
fn a_pod_tells_which_worker_it_is() {
    let seen = |change: &dyn Fn(&mut Value)| {
        let mut pod = pod_of(&maker(""), &launch());
        change(&mut pod);
        key_of(&serde_json::from_value::<SeenPod>(pod).unwrap().metadata)
    };
    assert_eq!(seen(&|_| {}), Some(launch().key));
    assert_eq!(seen(&|pod| pod["metadata"]["name"] = json!("copy-of-it")), None);
    assert_eq!(seen(&|pod| pod["metadata"]["labels"]["ottoscaler.io/index"] = json!("3")), None);
    assert_eq!(seen(&|pod| pod["metadata"]["labels"]["ottoscaler.io/attempt"] = json!("x")), None);
    assert_eq!(seen(&|pod| pod["metadata"]["labels"]["app.kubernetes.io/managed-by"] = json!("x")), None);
    assert_eq!(seen(&|pod| pod["metadata"]["annotations"] = Value::Null), None);
    assert_eq!(seen(&|pod| pod["metadata"]["labels"] = Value::Null), None);
}

#[test]
fn what_the_cluster_changed_is_named() {
    let altered = |change: &dyn Fn(&mut Value)| {
        let mut pod = pod_of(&maker(""), &launch());
        change(&mut pod["metadata"]);
        altered(&launch().key, &serde_json::from_value::<SeenPod>(pod).unwrap().metadata)
    };
    assert_eq!(altered(&|_| {}), None);
    assert_eq!(altered(&|metadata| metadata["labels"]["team"] = json!("x")), None);
    let index = altered(&|metadata| metadata["labels"]["ottoscaler.io/index"] = json!("3")).unwrap();
    assert!(index.contains("(the label ottoscaler.io/index is `3` instead of `2`)"), "{index}");
    let gone = altered(&|metadata| metadata["annotations"] = Value::Null).unwrap();
    assert!(gone.contains("(the annotation ottoscaler.io/task-id is gone)"), "{gone}");
    let name = altered(&|metadata| metadata["name"] = json!("x")).unwrap();
    assert!(name.contains("the name is `x`"), "{name}");
}

/// Not a measurement: an alarm if Pods are put together from the beginning each time.
#[test]
fn a_pod_costs_little() {
    let maker = maker("");
    let launch = launch();
    let busy = || {
        let used = clock_gettime(ClockId::ThreadCPUTime);
        Duration::new(used.tv_sec.unsigned_abs(), u32::try_from(used.tv_nsec).unwrap())
    };
    let began = busy();
    for _ in 0..2_000 {
        maker.make(&launch, UID).unwrap();
    }
    let each = (busy() - began) / 2_000;
    println!("{each:?} for each Pod");
    assert!(each < Duration::from_millis(2), "{each:?}");
}

fn launches() -> impl Strategy<Value = Launch> {
    let words = || proptest::collection::vec("[^\0]{0,20}", 0..4);
    let env = proptest::collection::btree_map("[a-zA-Z_][a-zA-Z0-9_.-]{0,12}", "[^\0]{0,20}", 0..6);
    let key = (r"[^\x00-\x1f\x7f]{1,253}", any::<u32>(), any::<u32>());
    (key, words(), words(), env, any::<u32>(), "[^\0]{0,20}", any::<bool>()).prop_map(
        |((task_id, index, attempt), command, args, env, timeout_seconds, reason, traced)| {
            let command = [vec!["sh".to_owned()], command].concat();
            let spec =
                Spec { image: "debian:12".into(), command, args, env, timeout_seconds, reason, ..Spec::default() };
            let traceparent = traced.then(|| "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned());
            Launch { key: WorkerKey { task_id, index, attempt }, spec: spec.into(), traceparent }
        },
    )
}

/// What Kubernetes makes of a text in a command or value (`k8s.io/kubernetes/third_party/forked/golang/expansion`), where
/// it knows every name.
fn expanded(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((_, after)) = rest.strip_prefix('(').and_then(|rest| rest.split_once(')')) {
            out.push_str("EXPANDED");
            rest = after;
        } else {
            out.push('$');
        }
    }
    out + rest
}

proptest! {
    #[test]
    fn any_launch_makes_a_valid_pod(launch in launches()) {
        let maker = maker("metadata: {labels: {a: b}}\nspec: {containers: [{name: job, env: [{name: A, value: x}]}]}");
        let made = maker.make(&launch, UID).unwrap();
        prop_assert_eq!(&made, &maker.make(&launch, UID).unwrap());
        // As the types of the API read it.
        let pod: k8s_openapi::api::core::v1::Pod = serde_json::from_slice(&made).unwrap();
        let name = pod.metadata.name.clone().unwrap();
        prop_assert!(name.len() <= 63 && crate::driver::name::is_worker_name(&name));
        for (label, value) in pod.metadata.labels.unwrap() {
            prop_assert!(value.len() <= 63, "{label}: {value}");
        }
        let seen: SeenPod = serde_json::from_slice(&made).unwrap();
        prop_assert_eq!(key_of(&seen.metadata), Some(launch.key.clone()));

        let job = pod.spec.unwrap().containers.into_iter().find(|one| one.name == "job").unwrap();
        let args: Vec<String> = job.args.unwrap().iter().map(|word| expanded(word)).collect();
        let at = args.iter().position(|word| word == "--").unwrap();
        let words: Vec<&String> = launch.spec.command.iter().chain(&launch.spec.args).collect();
        prop_assert_eq!(args[at + 1..].iter().collect::<Vec<_>>(), words);
        let env = job.env.unwrap();
        let mut names: Vec<&str> = env.iter().map(|one| one.name.as_str()).collect();
        prop_assert!(names.iter().all(|name| is_variable_name(name)));
        names.sort_unstable();
        names.dedup();
        prop_assert_eq!(names.len(), env.len());
        for (name, value) in launch.spec.env.iter().filter(|(name, _)| !name.starts_with("OTTO_") && *name != "TRACEPARENT") {
            let given = env.iter().find(|one| one.name == *name).unwrap();
            prop_assert_eq!(&expanded(given.value.as_deref().unwrap_or_default()), value);
        }
        let told = [
            format!("--task-id={}", launch.key.task_id),
            format!("--set-env=OTTO_JOB_INDEX={}", launch.key.index),
            format!("--set-env=OTTO_JOB_REPOSITORY={}", launch.spec.repository),
        ];
        prop_assert!(told.iter().all(|word| args[..at].contains(word)), "{args:?}");
    }
}

/// The limit of one container is that of the whole Pod, the agent's volume included.
#[test]
fn a_limit_of_disk_is_the_jobs_own() {
    let resources = |template: &str| pod_of(&maker(template), &launch())["spec"]["containers"][0]["resources"].clone();
    let job = |limits: &str| format!("{{name: job, resources: {{limits: {limits}}}}}");
    let none = resources(&format!("spec: {{containers: [{}]}}", job("{memory: 1Gi}")));
    assert!(!none.to_string().contains("ephemeral-storage"), "{none}");
    let limited = resources(&format!("spec: {{containers: [{}]}}", job("{ephemeral-storage: 512Mi}")));
    assert_eq!(limited["limits"]["ephemeral-storage"], "1152Mi");
    assert_eq!(limited["requests"].get("ephemeral-storage"), None, "as the limit");
    assert_eq!(limited["limits"]["memory"], "128Mi");
    for said in ["limits", "requests"] {
        let otto = format!("{{name: otto, resources: {{{said}: {{ephemeral-storage: 2Gi}}}}}}");
        let own = resources(&format!("spec: {{containers: [{}, {otto}]}}", job("{ephemeral-storage: 512Mi}")));
        assert_eq!(own[said]["ephemeral-storage"], "2Gi");
        assert_eq!(own.to_string().matches("ephemeral-storage").count(), 1, "the operator's own");
    }
}

use clap::Parser;

use super::*;

fn parse(args: &[&str]) -> Result<Config, String> {
    Config::try_parse_from([&["otto-scaler"], args].concat()).map_err(|error| error.to_string())
}

#[test]
fn the_names_that_scripts_rely_on() {
    let config = parse(&[
        "--driver",
        "process",
        "--redis-url",
        "redis://127.0.0.1:6379",
        "--event-stream",
        "s",
        "--consumer-group",
        "g",
        "--log-server",
        "http://127.0.0.1:1",
        "--grpc-addr",
        "127.0.0.1:0",
        "--admin-addr",
        "127.0.0.1:0",
        "--data-dir",
        "/tmp/x",
        "--max-workers",
        "7",
        "--event-start",
        "$",
        "--record-retention",
        "2d",
        "--worker-binary",
        "/bin/otto-worker",
        "--ready-file",
        "/tmp/ready",
        "--default-command",
        r#"["make"]"#,
    ])
    .unwrap();
    let options = config.options().unwrap();
    assert_eq!(options.limits, Limits { total: Some(7), per_repository: None, per_task: None });
    assert_eq!((options.defaults.retention, options.defaults.command), (2 * 86_400_000, vec!["make".to_owned()]));
    assert_eq!(config.process().worker_binary, PathBuf::from("/bin/otto-worker"));
    assert!(config.redis.options(config.limits.record_retention).unwrap().is_some());
    assert!(parse(&[]).unwrap().redis.options(Duration::from_secs(60)).unwrap().is_none());
}

#[test]
fn bad_values_name_the_setting() {
    for (args, expected) in [
        (["--max-workers", "0"], "--max-workers"),
        (["--event-start", "now"], "--event-start"),
        (["--default-command", "make"], "a JSON array of strings"),
        (["--record-retention", "5s"], "1m or longer"),
        (["--driver", "docker"], "process, kubernetes"),
        (["--log-server", "127.0.0.1:1"], "--log-server"),
    ] {
        let error = parse(&args).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
    let config = parse(&["--retry-backoff-min", "1h"]).unwrap();
    assert!(config.options().unwrap_err().to_string().contains("--retry-backoff-max"));
    let config = parse(&["--record-retention", "5m", "--keep-ended", "10m"]).unwrap();
    assert!(config.options().unwrap_err().to_string().contains("--record-retention (300s) is not longer"));
    let config = parse(&["--redis-url", "http://x"]).unwrap();
    assert!(config.redis.options(Duration::from_secs(60)).unwrap_err().to_string().contains("--redis-url"));
}

#[test]
fn what_pods_need_is_asked_of_events() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pods.yaml");
    let path = path.to_str().unwrap();
    std::fs::write(path, "classes: {big: {spec: {nodeSelector: {pool: big}}}}").unwrap();
    let args =
        ["--driver", "kubernetes", "--pod-template", path, "--worker-arg=--spool-bytes=64MiB", "--worker-image", "a"];
    let config = parse(&args).unwrap();
    let defaults = config.options().unwrap().defaults;
    assert_eq!(defaults.command, Vec::<String>::new());
    assert_eq!(defaults.pods.unwrap().classes.into_iter().collect::<Vec<_>>(), ["big"]);
    let options = config.kubernetes();
    assert_eq!((options.worker_image.as_str(), options.worker_args), ("a", vec!["--spool-bytes=64MiB".to_owned()]));

    let lines = parse(&["--driver", "kubernetes", "--worker-arg=--mask-env=A\n--mask-env=B \n"]).unwrap();
    assert_eq!(lines.kubernetes().worker_args, ["--mask-env=A", "--mask-env=B "]);
    let problem = parse(&["--worker-arg=--mask-env=A --mask-env=B"]).unwrap_err();
    assert!(problem.contains("--worker-arg") && problem.contains("more than one flag"), "{problem}");

    std::fs::write(path, "spec: {restartPolicy: Always}").unwrap();
    let problem = format!("{:#}", parse(&args).unwrap().options().unwrap_err());
    assert!(problem.contains("--pod-template") && problem.contains("`spec.restartPolicy`"), "{problem}");
    let process = parse(&["--pod-template", path]).unwrap().options().unwrap().defaults;
    assert!(process.pods.is_none() && !process.command.is_empty());
}

#[test]
fn workers_may_have_a_token_of_their_own() {
    let of = |args: &[&str]| parse(args).unwrap().process().auth_token_file;
    assert_eq!(of(&[]), None);
    assert_eq!(of(&["--auth-token-file", "all"]), Some("all".into()));
    assert_eq!(of(&["--auth-token-file", "all", "--worker-token-file", "logs"]), Some("logs".into()));
}

#[test]
fn defaults_go_by_the_driver() {
    let process = parse(&[]).unwrap().options().unwrap();
    let kubernetes = ["--driver", "kubernetes", "--agent-image", "otto-worker"];
    let pods = parse(&kubernetes).unwrap().options().unwrap();
    assert_eq!((process.creations, pods.creations), (16, 32));
    assert_eq!((pods.remains, pods.writes), (2_000, 256));
    let few = parse(&[&kubernetes[..], &["--max-creations", "3", "--max-ended", "0"]].concat()).unwrap();
    let few = few.options().unwrap();
    assert_eq!((few.creations, few.remains), (3, 0));
}

#[test]
fn pods_that_have_ended_stay_for_ten_minutes() {
    let options = |more: &[&str]| parse(&[&["--keep-ended", "9m59s"], more].concat()).unwrap().options();
    assert!(options(&[]).is_ok());
    let error = options(&["--driver", "kubernetes"]).unwrap_err().to_string();
    assert!(error.contains("--keep-ended") && error.contains("accepted: 10m"), "{error}");
}

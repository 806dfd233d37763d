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
    let config = parse(&["--redis-url", "http://x"]).unwrap();
    assert!(config.redis.options(Duration::from_secs(60)).unwrap_err().to_string().contains("--redis-url"));
}

//! Flags over environment over file.

use clap::Parser;
use otto_service::settings::{self, ByteSize, Common, Exit, LogFormat, Secret};
use std::collections::HashMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Debug, Parser)]
#[command(name = "server", version = "1.2.3")]
struct Server {
    #[command(flatten)]
    common: Common,
    /// Workers at most.
    #[arg(long, env = "OTTO_MAX_WORKERS", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    max_workers: u32,
    #[arg(long, env = "OTTO_RETENTION_AGE", default_value = "7d", value_parser = settings::parse_duration)]
    retention_age: Duration,
    #[arg(long, env = "OTTO_RETENTION_BYTES", default_value = "10GiB")]
    retention_bytes: ByteSize,
    #[arg(long, env = "OTTO_LABEL")]
    label: Vec<String>,
    #[arg(long, env = "OTTO_DRY_RUN")]
    dry_run: bool,
    #[arg(long, env = "OTTO_REDIS_URL")]
    redis_url: Option<Secret>,
    #[arg(long, env = "OTTO_DATA_DIR")]
    data_dir: PathBuf,
}

#[derive(Debug, Parser)]
#[command(name = "tool", version = "1.2.3")]
struct Tool {
    #[command(flatten)]
    common: Common,
    #[arg(long, env = "OTTO_SERVER", default_value = "http://127.0.0.1:9090", global = true)]
    server: String,
    #[command(subcommand)]
    command: ToolCommand,
}

#[derive(Debug, clap::Subcommand)]
enum ToolCommand {
    #[command(alias = "start")]
    Run {
        #[arg(long, env = "OTTO_TASK_ID")]
        task_id: String,
        #[arg(long, env = "OTTO_TIMEOUT", default_value = "0", value_parser = settings::parse_duration)]
        timeout: Duration,
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    Logs {
        task: String,
        #[arg(long, env = "OTTO_TAIL", default_value_t = 100)]
        tail: u32,
    },
}

fn load<T: Parser>(args: &[&str], env: &[(&str, &str)]) -> Result<T, Exit> {
    let env: HashMap<String, OsString> = env.iter().map(|(k, v)| ((*k).to_owned(), OsString::from(v))).collect();
    settings::load_from(args, |name| env.get(name).cloned())
}

/// A file of settings, and the flag for it.
struct File {
    _dir: tempfile::TempDir,
    path: String,
}

fn file(text: &str) -> File {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("otto.toml");
    std::fs::write(&path, text).unwrap();
    File { path: path.to_str().unwrap().to_owned(), _dir: dir }
}

fn message<T: Parser + std::fmt::Debug>(args: &[&str], env: &[(&str, &str)]) -> String {
    let exit = load::<T>(args, env).unwrap_err();
    assert_eq!(exit.status(), 2, "{exit}");
    exit.to_string()
}

#[track_caller]
fn assert_has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is missing in:\n{text}");
    }
}

#[test]
fn flags_win_over_the_environment_which_wins_over_the_file() {
    let file = file("max-workers = 3\ndata-dir = '/file'\nretention_age = '1d'\n");
    let config = ["server", "--config", &file.path];
    let args: Server = load(&config, &[]).unwrap();
    assert_eq!((args.max_workers, args.retention_age), (3, Duration::from_secs(86_400)));
    assert_eq!(args.data_dir, PathBuf::from("/file"));
    assert_eq!(args.retention_bytes, ByteSize::new(10 << 30), "the default, as nobody gives another");

    let args: Server = load(&config, &[("OTTO_MAX_WORKERS", "4"), ("OTTO_UNKNOWN_PORT", "tcp://x")]).unwrap();
    assert_eq!(args.max_workers, 4);

    let args: Server =
        load(&["server", "--max-workers=5", "--config", &file.path], &[("OTTO_MAX_WORKERS", "bad")]).unwrap();
    assert_eq!(args.max_workers, 5, "what is not used need not be good");

    let args: Server = load(&["server"], &[("OTTO_CONFIG", &file.path)]).unwrap();
    assert_eq!(args.max_workers, 3);
    assert_eq!(args.common.config, Some(file.path.clone().into()));
}

#[test]
fn lists_switches_and_choices_come_from_everywhere() {
    let file = file("label = ['a=1', 'b=2']\ndry-run = true\nlog_format = 'json'\ndata-dir = 'd'\n");
    let args: Server = load(&["server", "--config", &file.path], &[]).unwrap();
    assert_eq!(args.label, ["a=1", "b=2"]);
    assert!(args.dry_run);
    assert_eq!(args.common.log_format, LogFormat::Json);

    let env = [("OTTO_LABEL", "c=3\nd=4 "), ("OTTO_DRY_RUN", "no"), ("OTTO_LOG_FORMAT", "human")];
    let args: Server = load(&["server", "--config", &file.path], &env).unwrap();
    assert_eq!(args.label, ["c=3\nd=4 "], "one value, whatever is in it");
    assert!(!args.dry_run);
    assert_eq!(args.common.log_format, LogFormat::Human);

    let args: Server = load(&["server", "--data-dir", "d"], &[("OTTO_DRY_RUN", "1")]).unwrap();
    assert!(args.dry_run);
    // A value that looks like a flag is a value.
    let args: Server = load(&["server"], &[("OTTO_DATA_DIR", "--help")]).unwrap();
    assert_eq!(args.data_dir, PathBuf::from("--help"));
}

#[test]
fn tables_become_pairs() {
    let file = file("data-dir = 'd'\n[label]\na = 1\nb = 'two'\n");
    let args: Server = load(&["server", "--config", &file.path], &[]).unwrap();
    assert_eq!(args.label, ["a=1", "b=two"]);
}

#[test]
fn a_bad_value_is_named_with_its_origin_and_what_is_accepted() {
    let text = message::<Server>(&["server", "--data-dir", "d"], &[("OTTO_MAX_WORKERS", "5000")]);
    assert_has(
        &text,
        &["5000", "--max-workers", "environment variable OTTO_MAX_WORKERS", "1..=1000", "Workers at most"],
    );

    let file1 = file("max-workers = 'many'\ndata-dir = 'd'");
    let text = message::<Server>(&["server", "--config", &file1.path], &[]);
    assert_has(&text, &["many", "--max-workers", "key 'max-workers' in ", &file1.path]);

    let file2 = file("retention-age = 7\ndata-dir = 'd'");
    let text = message::<Server>(&["server", "--config", &file2.path], &[]);
    assert_has(&text, &["'7'", "--retention-age", &file2.path, "such as 500ms"]);

    let text = message::<Server>(&["server", "--data-dir", "d"], &[("OTTO_DRY_RUN", "perhaps")]);
    assert_has(&text, &["perhaps", "--dry-run", "true or false", "OTTO_DRY_RUN"]);

    let text = message::<Server>(&["server", "--data-dir", "d"], &[("OTTO_LOG_FORMAT", "xml")]);
    assert_has(&text, &["xml", "--log-format", "auto, human, json", "OTTO_LOG_FORMAT"]);

    let text = message::<Server>(&["server", "--data-dir", "d", "--retention-bytes", "10Gi"], &[]);
    assert_has(&text, &["10Gi", "--retention-bytes", "such as 4096"]);

    let file3 = file("max-workers = [1, 2]\ndata-dir = 'd'");
    let text = message::<Server>(&["server", "--config", &file3.path], &[]);
    assert_has(&text, &["max-workers", "one value", &file3.path]);
}

#[test]
fn unknown_keys_and_flags_are_refused_with_what_is_accepted() {
    let file1 = file("max-worker = 3\ndata-dir = 'd'");
    let text = message::<Server>(&["server", "--config", &file1.path], &[]);
    assert_has(&text, &["unknown key 'max-worker'", &file1.path, "did you mean 'max-workers'", "retention-age"]);

    for text in ["config = 'x'", "help = true", "version = true", "zzz = 1"] {
        let file = file(text);
        assert_has(&message::<Server>(&["server", "--config", &file.path], &[]), &["unknown key", "accepted keys: "]);
    }
    let file2 = file("max-workers = 1\nmax_workers = 2");
    assert_has(&message::<Server>(&["server", "--config", &file2.path], &[]), &["'max-workers' twice"]);
    assert_has(&message::<Server>(&["server", "--max-worker", "3"], &[]), &["--max-worker", "--max-workers"]);
}

#[test]
fn an_unreadable_file_is_named() {
    let text = message::<Server>(&["server", "--config", "/nonexistent/otto.toml"], &[]);
    assert_has(&text, &["/nonexistent/otto.toml", "--config", "No such file"]);
    let bad = file("max-workers = = 3");
    assert_has(&message::<Server>(&["server", "--config", &bad.path], &[]), &[&bad.path, "not valid TOML", "line 1"]);
}

#[test]
fn what_is_required_may_come_from_anywhere_but_must_come() {
    assert_has(&message::<Server>(&["server"], &[]), &["required", "--data-dir"]);
    assert_eq!(load::<Server>(&["server"], &[("OTTO_DATA_DIR", "e")]).unwrap().data_dir, PathBuf::from("e"));
}

#[test]
fn help_and_version_end_with_zero_and_show_no_values() {
    for (flag, part) in [("--help", "OTTO_MAX_WORKERS"), ("--version", "server 1.2.3")] {
        let exit = load::<Server>(&["server", flag], &[("OTTO_MAX_WORKERS", "bad")]).unwrap_err();
        assert_eq!(exit.status(), 0);
        assert_has(&exit.to_string(), &[part]);
    }
    let help = load::<Server>(&["server", "--help"], &[]).unwrap_err().to_string();
    assert_has(&help, &["--redis-url-file", "OTTO_REDIS_URL_FILE", "OTTO_CONFIG"]);
}

#[test]
fn secrets_may_be_in_files_of_their_own_and_are_never_shown() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("url");
    std::fs::write(&path, "redis://:pw@host\n").unwrap();
    let path = path.to_str().unwrap();
    let url = |args: &[&str], env: &[(&str, &str)]| {
        let mut all = vec!["server", "--data-dir=d"];
        all.extend(args);
        load::<Server>(&all, env).map(|args| args.redis_url.map(|url| url.expose().to_owned()))
    };
    let expected = Some("redis://:pw@host".to_owned());
    assert_eq!(url(&["--redis-url-file", path], &[]).unwrap(), expected);
    assert_eq!(url(&[], &[("OTTO_REDIS_URL_FILE", path)]).unwrap(), expected);
    let config = file(&format!("redis-url-file = '{path}'"));
    assert_eq!(url(&["--config", &config.path], &[]).unwrap(), expected);
    let config = file("redis_url = 'redis://file'");
    assert_eq!(url(&["--config", &config.path], &[]).unwrap().as_deref(), Some("redis://file"));
    // Flags over environment over file, whichever of the two forms.
    assert_eq!(url(&["--config", &config.path], &[("OTTO_REDIS_URL_FILE", path)]).unwrap(), expected);
    assert_eq!(url(&["--redis-url-file", path], &[("OTTO_REDIS_URL", "redis://env")]).unwrap(), expected);
    assert_eq!(
        url(&["--redis-url=redis://flag"], &[("OTTO_REDIS_URL_FILE", path)]).unwrap().as_deref(),
        Some("redis://flag")
    );
    assert_eq!(url(&[], &[]).unwrap(), None);

    let missing = url(&[], &[("OTTO_REDIS_URL_FILE", "/nonexistent/url")]).unwrap_err().to_string();
    assert_has(&missing, &["/nonexistent/url", "OTTO_REDIS_URL_FILE"]);
    let both = url(&["--redis-url=a", "--redis-url-file", path], &[]).unwrap_err().to_string();
    assert_has(&both, &["--redis-url", "--redis-url-file"]);
    let args: Server = load(&["server", "--data-dir=d", "--redis-url-file", path], &[]).unwrap();
    assert!(!format!("{args:?}").contains("pw"));
}

#[test]
fn subcommands_get_theirs_wherever_they_stand() {
    let config = file("server = 'http://file:1'\ntask-id = 'from-file'\ntimeout = '5s'\ntail = 7\n");
    let words = ["tool", "--config", &config.path, "run", "--", "run", "--timeout=1s"];
    let tool: Tool = load(&words, &[]).unwrap();
    assert_eq!(tool.server, "http://file:1");
    let ToolCommand::Run { task_id, timeout, command } = tool.command else { panic!() };
    assert_eq!((task_id.as_str(), timeout), ("from-file", Duration::from_secs(5)));
    assert_eq!(command, ["run", "--timeout=1s"], "what follows -- is left alone");

    // The subcommand's name is also a value, and the subcommand has an alias; global flags stand behind it.
    let words = ["tool", "--server", "run", "start", "--config", &config.path, "--", "x"];
    let tool: Tool = load(&words, &[("OTTO_TASK_ID", "from-env")]).unwrap();
    assert_eq!(tool.server, "run");
    let ToolCommand::Run { task_id, .. } = tool.command else { panic!() };
    assert_eq!(task_id, "from-env");

    let words = ["tool", "logs", "t", "--server", "http://flag:1"];
    let tool: Tool = load(&words, &[("OTTO_SERVER", "http://env:1"), ("OTTO_CONFIG", &config.path)]).unwrap();
    assert_eq!(tool.server, "http://flag:1");
    let ToolCommand::Logs { task, tail } = tool.command else { panic!() };
    assert_eq!((task.as_str(), tail), ("t", 7));

    let text = message::<Tool>(&["tool", "run", "--", "x"], &[]);
    assert_has(&text, &["--task-id", "required"]);
    let text = message::<Tool>(&["tool", "logs", "t"], &[("OTTO_TAIL", "-1")]);
    assert_has(&text, &["--tail", "OTTO_TAIL"]);
    assert_eq!(load::<Tool>(&["tool", "run", "--help"], &[]).unwrap_err().status(), 0);
}

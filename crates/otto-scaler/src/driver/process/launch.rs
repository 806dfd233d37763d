//! What a worker is started with: kept in its run directory, so that any scaler can start or drain it again.

use std::collections::BTreeMap;
use std::ffi::{CString, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::Options;
use crate::driver::{Launch, WorkerKey};
use crate::task::{Class, Millis, Outcome};

/// Of the scaler's environment, what every job gets.
const PASSED_ON: [&str; 5] = ["PATH", "HOME", "LANG", "TZ", "TMPDIR"];
/// Random, so that a process of the job is told from those of another scaler's job of the same name.
const LAUNCH_ID: &str = "LAUNCH_ID";
/// Names of variables that are meant for the agent alone.
const AGENT_ENV: &str = "OTTO_AGENT_ENV";

/// `launch.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LaunchFile {
    pub(super) task_id: String,
    pub(super) index: u32,
    pub(super) attempt: u32,
    pub(super) created_at_ms: Millis,
    /// Program and all arguments.
    pub(super) command: Vec<String>,
    /// What is added to the environment that every job gets.
    pub(super) env: BTreeMap<String, String>,
    /// 0: no limit.
    pub(super) timeout_seconds: u32,
}

impl LaunchFile {
    pub(super) fn new(launch: &Launch, created_at_ms: Millis) -> Self {
        let Launch { key, spec, traceparent } = launch;
        let mut env: BTreeMap<String, String> = spec
            .env
            .iter()
            .filter(|(name, _)| !name.starts_with("OTTO_"))
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect();
        // Set though empty, so that a script with `set -u` can read them all.
        let mut job = |name: &str, value: String| env.insert(format!("OTTO_JOB_{name}"), value);
        job(LAUNCH_ID, uuid::Uuid::new_v4().to_string());
        job("TASK_ID", key.task_id.clone());
        job("WORKER_ID", crate::driver::name::worker_name(key));
        job("INDEX", key.index.to_string());
        job("ATTEMPT", key.attempt.to_string());
        job("REPOSITORY", spec.repository.clone());
        job("COMMIT_SHA", spec.commit_sha.clone());
        job("TRIGGERED_BY", spec.triggered_by.clone());
        job("REASON", spec.reason.clone());
        job("TIMESTAMP", spec.timestamp.clone());
        if let Some(traceparent) = traceparent {
            env.insert("TRACEPARENT".to_owned(), traceparent.clone());
        }
        Self {
            task_id: key.task_id.clone(),
            index: key.index,
            attempt: key.attempt,
            created_at_ms,
            command: spec.command.iter().chain(&spec.args).cloned().collect(),
            env,
            timeout_seconds: spec.timeout_seconds,
        }
    }

    pub(super) fn key(&self) -> WorkerKey {
        WorkerKey { task_id: self.task_id.clone(), index: self.index, attempt: self.attempt }
    }

    /// The variable, `NAME=VALUE`, that every process of the job inherits and no other has.
    pub(super) fn mark(&self) -> Option<String> {
        let name = format!("OTTO_JOB_{LAUNCH_ID}");
        self.env.get(&name).filter(|id| !id.is_empty()).map(|id| format!("{name}={id}"))
    }

    /// What the kernel would refuse for ever.
    pub(super) fn check(&self) -> Result<(), Outcome> {
        let refused = |message: String| Outcome { class: Class::Config, exit_code: None, signal: None, message };
        if self.command.first().is_none_or(String::is_empty) {
            return Err(refused("there is no command to run".to_owned()));
        }
        if self.task_id.contains('\0') || self.command.iter().any(|word| word.contains('\0')) {
            return Err(refused("the command holds a NUL character, which no argument of a program can".to_owned()));
        }
        for (name, value) in &self.env {
            if name.is_empty() || name.contains(['=', '\0']) {
                let message = format!("`{}` cannot be the name of an environment variable", name.escape_debug());
                return Err(refused(message));
            }
            if value.contains('\0') {
                return Err(refused(format!("the environment variable {name} holds a NUL character")));
            }
        }
        Ok(())
    }

    /// `otto-worker run …`: starts the job, unless another agent has.
    pub(super) fn run_arguments(&self, options: &Options, name: &str, dir: &Path) -> Vec<OsString> {
        let mut words = self.common_arguments("run", options, name, dir);
        if self.timeout_seconds > 0 {
            words.push("--timeout".into());
            words.push(format!("{}s", self.timeout_seconds).into());
        }
        // Its output is read where the logs are.
        words.push("--tee=false".into());
        words.push("--grace".into());
        words.push(format!("{}ms", options.stop_grace.as_millis()).into());
        words.push("--".into());
        words.extend(self.command.iter().map(OsString::from));
        words
    }

    /// `otto-worker drain …`: sends what a dead agent left in the spool.
    pub(super) fn drain_arguments(&self, options: &Options, name: &str, dir: &Path) -> Vec<OsString> {
        self.common_arguments("drain", options, name, dir)
    }

    fn common_arguments(&self, verb: &str, options: &Options, name: &str, dir: &Path) -> Vec<OsString> {
        let mut words: Vec<OsString> = vec![options.worker_binary.clone().into(), verb.into()];
        let mut flag = |flag: &str, value: OsString| {
            // Joined, so that no value is taken for a flag.
            let mut word = OsString::from(format!("--{flag}="));
            word.push(value);
            words.push(word);
        };
        flag("run-dir", dir.into());
        flag("spool-dir", dir.join("spool").into());
        flag("task-id", self.task_id.clone().into());
        flag("worker-id", name.into());
        flag("log-server", options.log_server.clone().into());
        if let Some(file) = &options.auth_token_file {
            flag("auth-token-file", file.into());
        }
        words.extend(options.worker_args.iter().map(OsString::from));
        words
    }

    /// The whole environment, `NAME=VALUE` each. `own` is the scaler's.
    pub(super) fn environment(&self, own: impl Iterator<Item = (OsString, OsString)>) -> Vec<CString> {
        let mut all: BTreeMap<OsString, OsString> = BTreeMap::new();
        let mut for_agent = Vec::new();
        for (name, value) in own {
            let Some(text) = name.to_str() else { continue };
            if PASSED_ON.contains(&text) {
                all.insert(name, value);
            } else if is_for_agent(text) && !self.env.contains_key(text) {
                for_agent.push(text.to_owned());
                all.insert(name, value);
            }
        }
        all.extend(self.env.iter().map(|(name, value)| (name.into(), value.into())));
        // Also when there are none: what the job's environment says of telemetry is not for the agent then.
        all.insert(AGENT_ENV.into(), for_agent.join(",").into());
        let pair = |(name, value): (OsString, OsString)| {
            let mut pair = name;
            pair.push("=");
            pair.push(value);
            // `check` refused NUL in what comes from events; the kernel has none in ours.
            CString::new(pair.into_vec()).ok()
        };
        all.into_iter().filter_map(pair).collect()
    }
}

/// The agent reports its spans and messages where the scaler does; the job is not told.
fn is_for_agent(name: &str) -> bool {
    name == "RUST_LOG"
        || (name.starts_with("OTEL_") && name != "OTEL_SERVICE_NAME" && name != "OTEL_RESOURCE_ATTRIBUTES")
}

/// Arguments as the kernel takes them.
pub(super) fn c_strings(words: &[OsString]) -> std::io::Result<Vec<CString>> {
    words.iter().map(|word| Ok(CString::new(word.as_bytes())?)).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::task::Spec;

    fn launch(env: &[(&str, &str)]) -> Launch {
        let spec = Spec {
            command: vec!["sh".into(), "-c".into()],
            args: vec!["true".into()],
            env: env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            repository: "acme/shop".into(),
            ..Spec::default()
        };
        let key = WorkerKey { task_id: "t".into(), index: 2, attempt: 3 };
        Launch { key, spec: spec.into(), traceparent: Some("00-1-2-01".into()) }
    }

    fn environment(file: &LaunchFile, own: &[(&str, &str)]) -> Vec<String> {
        let own = own.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
        file.environment(own).into_iter().map(|pair| pair.into_string().unwrap()).collect()
    }

    #[test]
    fn a_job_gets_what_it_may_and_nothing_else() {
        let file = LaunchFile::new(&launch(&[("A", "1"), ("OTTO_EVIL", "1"), ("HOME", "/job")]), 1);
        let own = [("PATH", "/bin"), ("HOME", "/root"), ("SECRET", "x"), ("OTTO_REDIS_URL", "redis://:pw@h")];
        let mut pairs = environment(&file, &own);
        let mark = pairs.iter().position(|pair| Some(pair) == file.mark().as_ref()).unwrap();
        assert!(pairs.remove(mark).len() > "OTTO_JOB_LAUNCH_ID=".len());
        let expected = [
            "A=1",
            "HOME=/job",
            "OTTO_AGENT_ENV=",
            "OTTO_JOB_ATTEMPT=3",
            "OTTO_JOB_COMMIT_SHA=",
            "OTTO_JOB_INDEX=2",
            "OTTO_JOB_REASON=",
            "OTTO_JOB_REPOSITORY=acme/shop",
            "OTTO_JOB_TASK_ID=t",
            "OTTO_JOB_TIMESTAMP=",
            "OTTO_JOB_TRIGGERED_BY=",
            "OTTO_JOB_WORKER_ID=otto-t-e3b98a4da3-2-3",
            "PATH=/bin",
            "TRACEPARENT=00-1-2-01",
        ];
        assert_eq!(pairs, expected);
    }

    #[test]
    fn the_agent_gets_telemetry_settings_and_is_told_to_keep_them() {
        let file = LaunchFile::new(&launch(&[("OTEL_TRACES_SAMPLER", "always_off")]), 1);
        let own = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://x"),
            ("OTEL_SERVICE_NAME", "otto-scaler"),
            ("OTEL_TRACES_SAMPLER", "always_on"),
            ("RUST_LOG", "debug"),
        ];
        let pairs = environment(&file, &own);
        assert!(pairs.contains(&"OTEL_EXPORTER_OTLP_ENDPOINT=http://x".to_owned()), "{pairs:?}");
        assert!(pairs.contains(&"OTTO_AGENT_ENV=OTEL_EXPORTER_OTLP_ENDPOINT,RUST_LOG".to_owned()), "{pairs:?}");
        // The job's own setting wins, and stays the job's.
        assert!(pairs.contains(&"OTEL_TRACES_SAMPLER=always_off".to_owned()), "{pairs:?}");
        assert!(!pairs.iter().any(|pair| pair.starts_with("OTEL_SERVICE_NAME")), "{pairs:?}");
    }

    #[test]
    fn what_no_process_can_have_is_refused() {
        for bad in [[("A=B", "1")], [("", "1")], [("A", "x\0y")]] {
            let refused = LaunchFile::new(&launch(&bad), 1).check().unwrap_err();
            assert_eq!(refused.class, Class::Config, "{refused:?}");
        }
        let mut nul = launch(&[]);
        Arc::make_mut(&mut nul.spec).args.push("a\0b".into());
        assert!(LaunchFile::new(&nul, 1).check().unwrap_err().message.contains("NUL"));
        nul.spec = Arc::default();
        assert!(LaunchFile::new(&nul, 1).check().unwrap_err().message.contains("no command"));
        assert!(LaunchFile::new(&launch(&[("A", "")]), 1).check().is_ok());
    }
}

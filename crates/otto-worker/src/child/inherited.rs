//! What the agent was given for the job, kept aside before it makes the process fit for itself.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::Mode;

use crate::access;

/// Names, separated by commas, of further variables that are meant for the agent only.
const AGENT_ENV: &str = "OTTO_AGENT_ENV";

/// What the job inherits.
#[derive(Debug)]
pub(crate) struct Inherited {
    /// All variables, those of the agent too.
    pub(crate) environment: Vec<(OsString, OsString)>,
    pub(crate) umask: Mode,
}

impl Inherited {
    /// Takes them from the process. Where [`AGENT_ENV`] is set, `RUST_LOG` and `OTEL_*` that it does not name are the
    /// job's (of its image, or of its event), and are taken away from the agent: what they say is not meant for it.
    ///
    /// Must be called by the main thread while there is no other.
    #[allow(unsafe_code)]
    pub(crate) fn take() -> Self {
        let environment: Vec<_> = std::env::vars_os().collect();
        for name in of_job_only(&environment) {
            // SAFETY: no other thread exists yet that could read the environment.
            unsafe { std::env::remove_var(name) };
        }
        Inherited { environment, umask: rustix::process::umask(access::UMASK) }
    }

    /// Sets variables.
    pub(crate) fn set(&mut self, variables: &[(String, String)]) {
        for (name, value) in variables {
            replace(&mut self.environment, name, value);
        }
    }

    /// A variable.
    pub(crate) fn var(&self, name: &str) -> Option<&OsStr> {
        self.environment.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_os_str())
    }

    /// The job's environment: all without the agent's own settings (every `OTTO_` variable except `OTTO_JOB_`, and what
    /// [`AGENT_ENV`] names), with `set`.
    pub(crate) fn for_job(&self, set: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
        let named = named(&self.environment).unwrap_or_default();
        let of_agent = |name: &OsStr| {
            let bytes = name.as_bytes();
            (bytes.starts_with(b"OTTO_") && !bytes.starts_with(b"OTTO_JOB_")) || named.contains(&bytes)
        };
        let mut kept: Vec<_> = self.environment.iter().filter(|(name, _)| !of_agent(name)).cloned().collect();
        for (name, value) in set {
            replace(&mut kept, name, value);
        }
        kept
    }
}

fn replace(environment: &mut Vec<(OsString, OsString)>, name: &str, value: &str) {
    environment.retain(|(other, _)| other != name);
    environment.push((name.into(), value.into()));
}

/// What [`AGENT_ENV`] names; `None`: it is not set.
fn named(environment: &[(OsString, OsString)]) -> Option<Vec<&[u8]>> {
    let (_, value) = environment.iter().find(|(name, _)| name == AGENT_ENV)?;
    Some(value.as_bytes().split(|byte| *byte == b',').collect())
}

fn of_job_only(environment: &[(OsString, OsString)]) -> Vec<&OsStr> {
    let Some(named) = named(environment) else { return Vec::new() };
    let names = environment.iter().map(|(name, _)| name.as_os_str());
    let telemetry = names.filter(|name| *name == "RUST_LOG" || name.as_bytes().starts_with(b"OTEL_"));
    telemetry.filter(|name| !named.contains(&name.as_bytes())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inherited(variables: &[(&str, &str)]) -> Inherited {
        let environment = variables.iter().map(|(name, value)| (name.into(), value.into())).collect();
        Inherited { environment, umask: Mode::empty() }
    }

    #[test]
    fn the_agents_settings_are_not_the_jobs() {
        let inherited = inherited(&[
            ("PATH", "/bin"),
            ("OTTO_TASK_ID", "t"),
            ("OTTO_JOB_REASON", "r"),
            ("OTTOX", "1"),
            ("A", "b"),
            ("RUST_LOG", "x"),
            ("OTTO_AGENT_ENV", "RUST_LOG,OTEL_X"),
        ]);
        let job = inherited.for_job(&[("A", "c"), ("OTTO_JOB_TASK_ID", "t")]);
        let names: Vec<_> = job.iter().map(|(name, value)| format!("{}={}", name.display(), value.display())).collect();
        assert_eq!(names, ["PATH=/bin", "OTTO_JOB_REASON=r", "OTTOX=1", "A=c", "OTTO_JOB_TASK_ID=t"]);
        let mut inherited = inherited;
        inherited.set(&[("OTTO_JOB_REASON".into(), "s=1".into()), ("PATH".into(), String::new())]);
        assert_eq!(inherited.var("OTTO_JOB_REASON"), Some(OsStr::new("s=1")));
        assert_eq!(inherited.for_job(&[]).iter().filter(|(name, _)| name == "PATH").count(), 1);
        assert_eq!(inherited.var("A"), Some(OsStr::new("b")));
    }

    #[test]
    fn the_jobs_telemetry_is_not_the_agents() {
        let all = [("RUST_LOG", "x"), ("OTEL_A", "1"), ("OTEL_B", "2"), ("C", "3")];
        assert!(of_job_only(&inherited(&all).environment).is_empty());
        let named = [&all[..], &[("OTTO_AGENT_ENV", "OTEL_B")]].concat();
        assert_eq!(of_job_only(&inherited(&named).environment), ["RUST_LOG", "OTEL_A"]);
        let none = [&all[..], &[("OTTO_AGENT_ENV", "")]].concat();
        assert_eq!(of_job_only(&inherited(&none).environment), ["RUST_LOG", "OTEL_A", "OTEL_B"]);
    }
}

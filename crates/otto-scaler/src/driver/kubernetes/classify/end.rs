//! How the job of a Pod ended.

use serde::Deserialize;

use super::cause::{Cause, node};
use super::text::{steady, with};
use super::wait::{self, Whose};
use super::{Look, millis, outcome};
use crate::driver::kubernetes::seen::{SeenContainer, SeenTerminated};
use crate::task::{Class, Millis, Outcome};

/// The exit code of an agent that failed before it could begin the job, and could not even write down why.
const AGENT_FAILED: i32 = 125;
/// Of an agent that does not know a flag it is given, and so cannot say so where it says everything else.
const AGENT_FLAGS: i32 = 2;
/// The kubelet's reason for a container that it knows nothing of.
const NEVER_SEEN: &str = "ContainerStatusUnknown";

/// What the agent says of its job: the text of `exit.json` as termination message.
pub(super) struct Report {
    outcome: Outcome,
    pub(super) ended_at: Option<Millis>,
}

#[derive(Deserialize)]
struct Exit {
    #[serde(default)]
    exit_code: Option<i32>,
    #[serde(default)]
    signal: Option<i32>,
    class: String,
    #[serde(default)]
    message: String,
    #[serde(default)]
    ended_at_ms: Option<Millis>,
}

/// `None`: the agent said nothing, or nothing that is understood.
pub(super) fn report(end: &SeenTerminated) -> Option<Report> {
    let exit: Exit = serde_json::from_str(end.message.as_deref()?.trim()).ok()?;
    let class = serde_json::from_value(serde_json::Value::String(exit.class));
    // A class of a later agent.
    let class = class.unwrap_or(match exit.exit_code {
        Some(0) => Class::Success,
        Some(_) => Class::Exited,
        None => Class::AgentLost,
    });
    let outcome = Outcome { class, exit_code: exit.exit_code, signal: exit.signal, message: exit.message };
    Some(Report { outcome, ended_at: exit.ended_at_ms.filter(|at| *at > 0) })
}

/// Of a Pod whose job's container has ended.
pub(super) fn of_container(
    look: &Look<'_>,
    end: &SeenTerminated,
    report: Option<Report>,
    cause: Option<Cause>,
) -> Outcome {
    let reason = end.reason.as_deref().unwrap_or_default();
    let killed_for_memory = reason == "OOMKilled";
    let Some(Report { outcome: mut said, .. }) = report else {
        return of_silent(look, end, cause);
    };
    match said.class {
        // It came to its own end, whatever was done to its Pod.
        Class::Success | Class::Deadline | Class::Image | Class::Config => said,
        Class::Exited | Class::AgentLost | Class::Infrastructure if killed_for_memory => {
            Outcome { class: Class::OutOfMemory, message: out_of_memory(look.job()), ..said }
        }
        Class::OutOfMemory => {
            if said.message.is_empty() || limit(look.job()).is_some() {
                said.message = out_of_memory(look.job());
            }
            said
        }
        Class::Exited => said,
        // It does not know why it was stopped or killed; the cluster may.
        _ => match cause {
            Some(cause) => Outcome { class: cause.class, message: cause.message, ..said },
            None => said,
        },
    }
}

/// The agent was killed before it could say anything, or never began.
fn of_silent(look: &Look<'_>, end: &SeenTerminated, cause: Option<Cause>) -> Outcome {
    let reason = end.reason.as_deref().unwrap_or_default();
    let message = end.message.as_deref().unwrap_or_default();
    let signal = end
        .signal
        .filter(|signal| *signal > 0)
        .or_else(|| (129..=192).contains(&end.exit_code).then(|| end.exit_code - 128));
    let ended = |class, message| Outcome { class, exit_code: Some(end.exit_code), signal, message };
    match (reason, cause) {
        // It was never there, or is not there any more.
        (NEVER_SEEN, cause) => {
            let began = look.job_began().is_some() || message.contains("used to be Running");
            match cause {
                Some(cause) => outcome(cause.class, cause.message),
                None if look.is_deleted() => outcome(Class::Stopped, deleted(began)),
                None if began => outcome(
                    Class::NodeLost,
                    format!("{} was restarted, or lost sight of the job; nobody knows how it ended", node(look)),
                ),
                None => before_the_job(look).unwrap_or_else(|| {
                    let status = look.pod.status.message.as_deref().unwrap_or_default();
                    outcome(Class::Infrastructure, with("the Pod ended before the job began", status))
                }),
            }
        }
        ("StartError" | "ContainerCannotRun", _) => not_started(look, end),
        ("OOMKilled", _) => ended(Class::OutOfMemory, out_of_memory(look.job())),
        (_, _) if end.exit_code == 0 => ended(Class::Success, String::new()),
        (_, cause) => match (signal, cause) {
            (Some(_), Some(cause)) => ended(cause.class, cause.message),
            (Some(9), None) if look.is_deleted() => ended(
                Class::Stopped,
                "its Pod was deleted; it did not stop within its grace period and was killed".to_owned(),
            ),
            (Some(signal), None) if look.is_deleted() => {
                ended(Class::Stopped, format!("its Pod was deleted, and it ended by {}", named(signal)))
            }
            (Some(signal), None) => ended(
                Class::AgentLost,
                with(&format!("nobody knows how the job ended: its agent was killed by {}", named(signal)), message),
            ),
            (None, _) if end.exit_code == AGENT_FAILED => {
                ended(Class::Infrastructure, with("the agent failed before it began the job", message))
            }
            (None, _) => match flags_of_agent(look).filter(|_| end.exit_code == AGENT_FLAGS) {
                Some(trouble) => trouble,
                None => ended(Class::Exited, with(&format!("the job ended with exit code {}", end.exit_code), message)),
            },
        },
    }
}

/// What is known of a job whose Pod was deleted.
fn deleted(began: bool) -> String {
    let message = match began {
        true => "its Pod was deleted while the job ran; nobody knows how it ended",
        false => "its Pod was deleted before the job began",
    };
    message.to_owned()
}

/// Of a Pod whose job's container has not ended as far as is known, but which has ended or is gone as a whole.
pub(super) fn of_pod(look: &Look<'_>, cause: Option<Cause>) -> Outcome {
    let began = look.job_began().is_some() || look.job_runs();
    if look.phase() == "Succeeded" {
        return Outcome { class: Class::Success, exit_code: Some(0), signal: None, message: String::new() };
    }
    if let Some(cause) = cause {
        return outcome(cause.class, cause.message);
    }
    let status = look.pod.status.message.as_deref().unwrap_or_default();
    if look.phase() == "Unknown" {
        return outcome(Class::NodeLost, with(&format!("{} was lost", node(look)), status));
    }
    if !look.is_terminal() || look.is_deleted() {
        return outcome(Class::Stopped, deleted(began));
    }
    if !began && let Some(trouble) = before_the_job(look) {
        return trouble;
    }
    match look.job() {
        Some(_) if !began => outcome(Class::Infrastructure, with("the Pod failed before the job began", status)),
        _ => outcome(Class::Exited, with("the Pod failed, and its status does not say why", status)),
    }
}

/// What kept the job from beginning: an init container or the agent's container that failed.
pub(super) fn before_the_job(look: &Look<'_>) -> Option<Outcome> {
    if let Some(trouble) = flags_of_agent(look) {
        return Some(trouble);
    }
    // They come before the agent: where that has run, they were well, and those that ran beside it (sidecars) were ended.
    let before_agent = look.agent().and_then(terminated).is_none_or(|end| end.reason.as_deref() == Some(NEVER_SEEN));
    for container in look.init_containers.iter().filter(|_| before_agent) {
        if let Some(end) = terminated(container).filter(|end| end.exit_code != 0) {
            let what = format!("init container `{}` of the Pod template {}", container.name, how(end));
            return Some(outcome(Class::Infrastructure, with(&what, end.message.as_deref().unwrap_or_default())));
        }
    }
    let agent = look.agent()?;
    let end = terminated(agent)?;
    let why = end.message.as_deref().unwrap_or_default();
    let message = match end.reason.as_deref() {
        Some(NEVER_SEEN) => format!("the agent (container `{}`) did not start", agent.name),
        // Nothing but the Pod's events says so.
        Some("Error") if end.exit_code == 137 && why.is_empty() => format!(
            "the agent (container `{}`) was killed before the job began: its postStart hook, which installs it, failed, perhaps",
            agent.name
        ),
        _ => with(&format!("the agent (container `{}`) {} before the job began", agent.name, how(end)), why),
    };
    Some(outcome(Class::Infrastructure, message))
}

/// The agents of both containers are given the same flags of the operator's. The one that drains says in its log what is
/// wrong with them, and the kubelet takes that over.
fn flags_of_agent(look: &Look<'_>) -> Option<Outcome> {
    let end = look.agent().and_then(terminated).filter(|end| end.exit_code == AGENT_FLAGS)?;
    let why = end.message.as_deref().unwrap_or_default().trim_start().lines().next().unwrap_or_default();
    let what = "the agent does not take a flag or variable that it is given (--worker-arg, or the Pod template)";
    Some(outcome(Class::Config, with(what, why)))
}

/// No process of it ever ran.
pub(super) fn never_started(end: &SeenTerminated) -> bool {
    matches!(end.reason.as_deref(), Some("StartError" | "ContainerCannotRun"))
}

/// The job's container was made, but could not be started.
fn not_started(look: &Look<'_>, end: &SeenTerminated) -> Outcome {
    let message = end.message.as_deref().unwrap_or_default();
    // Without an agent there is nothing to start: that is the reason to tell.
    let agent_came = look.agent().is_none_or(|agent| {
        let state = agent.state.as_ref();
        let ended_later = state.and_then(|state| state.terminated.as_ref()).is_some_and(|agent| {
            millis(agent.finished_at.as_ref())
                .zip(millis(end.finished_at.as_ref()))
                .is_some_and(|(agent, job)| agent > job)
        });
        ended_later || state.is_some_and(|state| state.running.is_some())
    });
    if !agent_came && message.contains("no such file or directory") {
        if let Some(waiting) = look.agent().and_then(|agent| wait::trouble(look, agent, Whose::Agent)) {
            return waiting.outcome;
        }
        if let Some(trouble) = before_the_job(look) {
            return trouble;
        }
    }
    let (class, what) = wait::runtime_trouble(message);
    outcome(class, with(what.unwrap_or("the job's container cannot be started"), message))
}

fn terminated(container: &SeenContainer) -> Option<&SeenTerminated> {
    container.state.as_ref()?.terminated.as_ref()
}

fn how(end: &SeenTerminated) -> String {
    match end.reason.as_deref() {
        Some("OOMKilled") => "was killed for using more memory than its limit".to_owned(),
        Some(reason @ ("StartError" | "ContainerCannotRun" | "PostStartHookError")) => {
            format!("could not start ({reason})")
        }
        _ => match end.signal.or_else(|| (end.exit_code > 128).then(|| end.exit_code - 128)) {
            Some(signal) if signal > 0 => format!("was killed by {}", named(signal)),
            _ => format!("ended with exit code {}", end.exit_code),
        },
    }
}

fn limit(job: Option<&SeenContainer>) -> Option<&str> {
    job?.resources.as_ref()?.limits.get("memory").map(String::as_str)
}

fn out_of_memory(job: Option<&SeenContainer>) -> String {
    match limit(job) {
        Some(limit) => format!("killed for using more memory than its limit of {}", steady(limit)),
        None => "killed for using more memory than there was for it".to_owned(),
    }
}

/// `signal 9 (SIGKILL)`.
fn named(signal: i32) -> String {
    let name = match signal {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL",
        11 => "SIGSEGV",
        13 => "SIGPIPE",
        15 => "SIGTERM",
        _ => return format!("signal {signal}"),
    };
    format!("signal {signal} ({name})")
}

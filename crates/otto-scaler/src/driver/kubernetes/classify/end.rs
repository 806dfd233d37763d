//! How the job of a Pod ended.

use serde::Deserialize;

use super::cause::{Cause, node, rejected};
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
/// What a runtime says of a container whose end it did not see, because machine or shim went away beneath it: containerd
/// with the reason `Unknown` or, when it lost the shim alone, `Error`
/// (<https://github.com/containerd/containerd/blob/main/internal/cri/server/restart.go>), CRI-O with `Error`. A job that
/// ends with this code has its agent's report.
const END_UNSEEN: i32 = 255;
/// containerd's reason for it.
const REASON_UNSEEN: &str = "Unknown";

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
            None if said.class == Class::Stopped && !look.is_deleted() => of_stopped(look, end, said),
            None => said,
        },
    }
}

/// The job was stopped, but not with its Pod.
fn of_stopped(look: &Look<'_>, end: &SeenTerminated, said: Outcome) -> Outcome {
    // With its machine, whose runtime was gone before it.
    if nobody_saw(end) && said.exit_code != Some(end.exit_code) {
        return Outcome { class: Class::NodeLost, message: format!("{} was restarted", node(look)), ..said };
    }
    // The kubelet ends a single container for these alone, and says so nowhere but in the Pod's events.
    let why =
        "a liveness or startup probe or a postStart hook of the Pod template failed, or somebody ended its container";
    Outcome { class: Class::Exited, message: format!("stopped while it ran, its Pod was not: {why}"), ..said }
}

/// Whether the job was ended by others, as far as is known of it alone.
pub(super) fn by_others(end: &SeenTerminated) -> bool {
    match report(end) {
        Some(report) => report.outcome.class == Class::Stopped,
        None => end.reason.as_deref() == Some("Error") && signal(end).is_some(),
    }
}

/// The agent was killed before it could say anything, or never began.
fn of_silent(look: &Look<'_>, end: &SeenTerminated, cause: Option<Cause>) -> Outcome {
    let reason = end.reason.as_deref().unwrap_or_default();
    let message = end.message.as_deref().unwrap_or_default();
    let signal = signal(end);
    let ended = |class, message| Outcome { class, exit_code: Some(end.exit_code), signal, message };
    match (reason, cause) {
        ("StartError" | "ContainerCannotRun", _) => not_started(look, end),
        ("OOMKilled", _) => ended(Class::OutOfMemory, out_of_memory(look.job())),
        // It was never there, or is not there any more.
        (_, cause) if nobody_saw(end) => {
            let began = look.job_began().is_some() || message.contains("used to be Running");
            match cause {
                Some(cause) => outcome(cause.class, cause.message),
                None if look.is_deleted() => outcome(Class::Stopped, deleted(began)),
                None if began => outcome(Class::NodeLost, lost_sight(look)),
                None => before_the_job(look).unwrap_or_else(|| {
                    let status = look.pod.status.message.as_deref().unwrap_or_default();
                    outcome(Class::Infrastructure, with("the Pod ended before the job began", status))
                }),
            }
        }
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

fn signal(end: &SeenTerminated) -> Option<i32> {
    let by_code = || (129..=192).contains(&end.exit_code).then(|| end.exit_code - 128);
    end.signal.filter(|signal| *signal > 0).or_else(by_code)
}

/// Nobody saw how a container ended that left no report: its code was made up. (So is one that no process can have;
/// virtual nodes say -137.)
fn nobody_saw(end: &SeenTerminated) -> bool {
    matches!(end.reason.as_deref(), Some(NEVER_SEEN | REASON_UNSEEN))
        || end.exit_code == END_UNSEEN
        || !(0..=255).contains(&end.exit_code)
}

fn lost_sight(look: &Look<'_>) -> String {
    format!("{} was restarted, or lost sight of the job; nobody knows how it ended", node(look))
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
    // Not admitted by its node, mostly: a kubelet's reason that is not known here, or one of another kind of node.
    if let Some(reason) = look.pod.status.reason.as_deref().filter(|reason| !reason.is_empty()) {
        let message = match began {
            true => with(&format!("{} ended the Pod ({})", node(look), steady(reason)), status),
            false => rejected(&node(look), reason, status),
        };
        return outcome(Class::Infrastructure, message);
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
        Some(REASON_UNSEEN) => "was lost in a restart of its node".to_owned(),
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

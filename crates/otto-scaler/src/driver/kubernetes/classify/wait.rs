//! Why the job of a Pod has not begun yet.

use super::text::{line, steady, with};
use super::{Look, outcome};
use crate::driver::Waiting;
use crate::driver::kubernetes::names::AGENT_CONTAINER;
use crate::driver::kubernetes::seen::SeenContainer;
use crate::task::Class;

/// Of whom a container of the Pod is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whose {
    Job,
    Agent,
    /// The operator's, by the Pod template.
    Template,
}

fn waits(class: Class, message: String) -> Waiting {
    Waiting { outcome: outcome(class, message), hopeless: false, usual: false }
}

fn hopeless(class: Class, message: String) -> Waiting {
    Waiting { hopeless: true, ..waits(class, message) }
}

fn usual(class: Class, message: String) -> Waiting {
    Waiting { usual: true, ..waits(class, message) }
}

/// `None`: it is on its way, as far as is known.
pub(super) fn waiting(look: &Look<'_>) -> Option<Waiting> {
    if look.is_deleted() {
        // It will not begin any more; its containers are being ended, and look as if they had failed.
        return None;
    }
    if let Some(("False", reason, message, _)) = look.condition("PodScheduled") {
        return Some(match reason {
            "SchedulingGated" => {
                waits(Class::Unschedulable, "not scheduled: held back by a scheduling gate of the Pod".to_owned())
            }
            _ => waits(Class::Unschedulable, with("not scheduled", scheduler(message))),
        });
    }
    let init = look.init_containers.iter().map(|container| (container, Whose::Template));
    let agent = look.agent().into_iter().map(|container| (container, Whose::Agent));
    let job = look.job().into_iter().map(|container| (container, Whose::Job));
    let trouble = init.chain(agent).chain(job).find_map(|(container, whose)| trouble(look, container, whose));
    if trouble.is_some() {
        return trouble;
    }
    if let Some(outcome) = super::end::before_the_job(look) {
        return Some(Waiting { outcome, hopeless: false, usual: false });
    }
    let Some(node) = look.node() else {
        // Nobody has looked at it: the scheduler writes the condition when it finds no node at once.
        let message = "not scheduled: no scheduler has looked at it".to_owned();
        return Some(usual(Class::Unschedulable, message));
    };
    // The kubelet mounts volumes, sets up the network, pulls images and starts containers before it says of any of these in the
    // Pod (<https://github.com/kubernetes/kubernetes/pull/134660>): events tell.
    if let Some(("False", ..)) = look.condition("PodReadyToStartContainers") {
        let message =
            format!("waits for its volumes, its network or its images on node {node}; the Pod's events say more");
        return Some(usual(Class::Volume, message));
    }
    // Init containers run, one after the other; one that never ends would be waited for without a word.
    let Some(("False", "ContainersNotInitialized", message, _)) = look.condition("Initialized") else { return None };
    let names = message.split_once("incomplete status: [").and_then(|(_, names)| names.split_once(']'));
    let names = names.map_or(message, |(names, _)| names);
    let turn = look.init_containers.iter().find(|container| names.split_whitespace().next() == Some(&container.name));
    if turn.is_some_and(|container| container.state.as_ref().is_some_and(|state| state.waiting.is_some())) {
        let message =
            format!("waits for the image of an init container of the Pod template, or for its start: {names}");
        return Some(usual(Class::Infrastructure, message));
    }
    Some(usual(Class::Infrastructure, with("waits for init containers of the Pod template to be done", names)))
}

/// What one of the cluster's Events says of a Pod whose status says nothing.
pub(in crate::driver::kubernetes) fn told_by_event(reason: &str, message: &str) -> String {
    let what = match reason {
        "FailedMount" | "FailedMapVolume" => "a volume cannot be mounted".to_owned(),
        "FailedAttachVolume" => "a volume cannot be attached to its node".to_owned(),
        "FailedCreatePodSandBox" | "FailedPodSandBoxStatus" | "NetworkNotReady" => {
            "its network cannot be set up".to_owned()
        }
        "FailedPrepareDynamicResources" => "its resource claims cannot be prepared".to_owned(),
        other => steady(other),
    };
    with(&what, message)
}

/// The scheduler's sentence without what it tried besides, which failed, too.
fn scheduler(message: &str) -> &str {
    let end =
        [" preemption: ", ". no new claims to deallocate"].into_iter().filter_map(|what| message.find(what)).min();
    message.get(..end.unwrap_or(message.len())).unwrap_or(message)
}

/// What keeps a container from running. `None`: nothing, or it is on its way.
pub(super) fn trouble(look: &Look<'_>, container: &SeenContainer, whose: Whose) -> Option<Waiting> {
    let waiting = container.state.as_ref()?.waiting.as_ref()?;
    let reason = waiting.reason.as_deref().unwrap_or_default();
    let message = waiting.message.as_deref().unwrap_or_default();
    let name = match whose {
        Whose::Job => "the job's container".to_owned(),
        Whose::Agent => format!("the agent's container `{AGENT_CONTAINER}`"),
        Whose::Template => format!("container `{}` of the Pod template", container.name),
    };
    Some(match reason {
        "" | "ContainerCreating" | "PodInitializing" => return None,
        "ErrImagePull"
        | "ImagePullBackOff"
        | "RegistryUnavailable"
        | "ErrRegistryUnavailable"
        | "ImageInspectError" => {
            let class = if is_away(reason, message) { Class::Infrastructure } else { image_class(whose, false) };
            waits(class, not_pulled(container, whose, message))
        }
        "SignatureValidationFailed" => hopeless(
            image_class(whose, true),
            with(&format!("{} is not signed as it must be", image(container, whose)), message),
        ),
        "InvalidImageName" => hopeless(
            image_class(whose, true),
            with(&format!("{} has a name that cannot be", image(container, whose)), message),
        ),
        "ErrImageNeverPull" => {
            let node = look.node().map_or_else(String::new, |node| format!(" on node {node}"));
            let message = format!(
                "{} is not there{node}, and may not be pulled (imagePullPolicy Never)",
                image(container, whose)
            );
            hopeless(image_class(whose, true), message)
        }
        "CreateContainerConfigError" => {
            // Not whatever has `volume` in its name.
            let of_volume = ["subPath", "volumeMount", "cannot find volume"].iter().any(|text| message.contains(text));
            let class = if of_volume { Class::Volume } else { Class::Config };
            let message = without_pod(message);
            let text = with(&format!("{name} cannot be configured"), message);
            // It says so of image and Pod alone: neither changes.
            if message.contains("runAsNonRoot") { hopeless(Class::Config, text) } else { waits(class, text) }
        }
        "CreateContainerError" | "RunContainerError" | "StartError" => {
            let (class, what) = runtime_trouble(message);
            let class = if whose == Whose::Job { class } else { Class::Infrastructure };
            waits(class, with(&what.map_or_else(|| format!("{name} cannot be started"), str::to_owned), message))
        }
        "PostStartHookError" => {
            waits(Class::Infrastructure, with(&format!("{name} failed to set up (postStart hook)"), message))
        }
        "CrashLoopBackOff" => waits(Class::Infrastructure, format!("{name} ends again and again")),
        other => waits(Class::Infrastructure, with(&format!("{name} cannot start ({})", steady(other)), message)),
    })
}

/// The job's image is the event's; the others are the operator's.
fn image_class(whose: Whose, for_good: bool) -> Class {
    match (whose, for_good) {
        (Whose::Job, _) => Class::Image,
        (_, true) => Class::Config,
        (_, false) => Class::Infrastructure,
    }
}

/// Whether an image could not be pulled because of the network, the registry's state or the node's, which pass, and not
/// because of the image. Runtimes tell by text alone: containerd as in `core/remotes`, CRI-O as in `go.podman.io/image`, both
/// with what Go's `net` and `crypto/tls` say; the kubelet puts its own before it. Where one of several mirrors is away, the
/// image may be there. A back-off of which nobody says the reason is taken as passing, too: the next try tells.
fn is_away(reason: &str, message: &str) -> bool {
    /// None of them can be in an image's name: there are no spaces in it.
    const TEXTS: &[&str] = &[
        // The network.
        "dial tcp",
        "dial unix",
        "no such host",
        "server misbehaving",
        "Temporary failure in name resolution",
        "connection refused",
        "connection reset by peer",
        "connection timed out",
        "no route to host",
        "network is unreachable",
        "broken pipe",
        "i/o timeout",
        "TLS handshake timeout",
        "tls: ",
        "x509: ",
        "timeout awaiting response headers",
        "Client.Timeout exceeded",
        "client connection lost",
        "use of closed network connection",
        "context deadline exceeded",
        "context canceled",
        "unexpected EOF",
        "\": EOF",
        // The registry.
        "because the registry is unavailable",
        "Too Many Requests",
        "toomanyrequests: ",
        // The node.
        "pull QPS exceeded",
        "no space left on device",
    ];
    let bare_back_off = reason == "ImagePullBackOff" && reason_of_pull(message).is_empty();
    bare_back_off
        || reason.ends_with("RegistryUnavailable")
        || TEXTS.iter().any(|text| message.contains(text))
        || http_status(message).is_some_and(|status| matches!(status, 408 | 429 | 500..=599))
}

/// What a registry answered: `unexpected status from HEAD request to https://…: 503 Service Unavailable`, `failed with status
/// code [manifests 1]: 503 …`, `received unexpected HTTP status: 503 …`, `invalid status code from registry 503 (…)`,
/// `StatusCode: 503, …`.
fn http_status(message: &str) -> Option<u16> {
    let said = ["status", "Status"].into_iter().filter_map(|word| message.find(word)).min()?;
    let words = message[said..].split_whitespace().map(|word| word.trim_end_matches(','));
    words.filter(|word| word.len() == 3).find_map(|word| word.parse().ok().filter(|status| (100..600).contains(status)))
}

/// What the kubelet says of a pull, without that it waits with the next one.
fn reason_of_pull(message: &str) -> &str {
    let Some(rest) = message.strip_prefix("Back-off pulling image ") else { return message };
    rest.split_once("\": ").map_or("", |(_, why)| why)
}

/// `image acme/x:1 cannot be pulled: not found in the registry docker.io`.
fn not_pulled(container: &SeenContainer, whose: Whose, message: &str) -> String {
    let what = format!("{} cannot be pulled", image(container, whose));
    let why = steady(reason_of_pull(message));
    // containerd names the image in full once more.
    match why.split_once(": ") {
        Some((full, "not found")) if full.ends_with(container.image.as_str()) => match full.split_once('/') {
            Some((registry, _)) => format!("{what}: not found in the registry {registry}"),
            None => format!("{what}: not found"),
        },
        Some((full, why)) if full.ends_with(container.image.as_str()) => format!("{what}: {why}"),
        _ => with(&what, &why),
    }
}

fn image(container: &SeenContainer, whose: Whose) -> String {
    let image = line(&container.image);
    match whose {
        Whose::Job => format!("image {image}"),
        Whose::Agent => format!("the agent's image {image} (--agent-image)"),
        Whose::Template => format!("image {image} of container `{}` of the Pod template", container.name),
    }
}

/// `… (pod: "NAME_NAMESPACE(UID)", container: job)` without the last part.
fn without_pod(message: &str) -> &str {
    message.split(" (pod: ").next().unwrap_or(message)
}

/// What a container runtime's message is about, and how to begin the sentence if there is a better way. Runtimes tell
/// by text alone; what is not known here is taken as the node's trouble, and tried again.
pub(super) fn runtime_trouble(message: &str) -> (Class, Option<&'static str>) {
    let has = |texts: &[&str]| texts.iter().any(|text| message.contains(text));
    if has(&[
        "no space left on device",
        "resource temporarily unavailable",
        "cannot allocate memory",
        "context deadline exceeded",
    ]) {
        (Class::Infrastructure, None)
    } else if has(&["memory limit too low", "container init was OOM-killed", "unable to set memory limit"]) {
        (Class::Config, Some("the job's memory limit is too low to start a program"))
    } else if has(&["exec format error"]) {
        (
            Class::Config,
            Some("the image of the agent (--agent-image) is for another kind of processor than this node has"),
        )
    } else if has(&[
        "unable to find user",
        "unable to find group",
        "no users found",
        "permission denied",
        "not a directory",
        "chdir to cwd",
        "is not an absolute path",
        "read-only file system",
        "invalid reference format",
        "must be an absolute path",
    ]) {
        (Class::Config, None)
    } else {
        (Class::Infrastructure, None)
    }
}

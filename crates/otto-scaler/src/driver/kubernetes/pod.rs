//! The Pod of a worker.
//!
//! What does not depend on the launch is put together and written as JSON once per resource class, when the scaler starts
//! ([`shape`]); a launch fills in the rest. So a Pod costs microseconds here, and no more bytes than it needs: every one of
//! them is parsed, checked and stored by the API server.

use std::borrow::Cow;
use std::collections::BTreeMap;

use self::shape::{Common, Shape, Slot};
use self::write::{array, member, number, object, splice, string};
use super::names::{
    ATTEMPT_LABEL, INDEX_LABEL, MANAGED_BY_LABEL, NAME_LABEL, TASK_ANNOTATION, TASK_LABEL, TRACE_ANNOTATION, task_label,
};
use super::seen::SeenMetadata;
use super::template::Template;
use super::{Options, image};
use crate::driver::name::worker_name;
use crate::driver::{Launch, WorkerKey};
use crate::task::{Class, Outcome};

mod env;
mod shape;
mod trial;
mod write;

pub(super) use trial::Trial;

/// Largest Pod, in bytes of JSON. etcd takes 1.5 MiB in one request, and managed fields come on top.
const LARGEST: usize = 1_400_000;

/// Makes Pods from launches.
#[derive(Debug)]
pub(super) struct PodMaker {
    template: Template,
    /// Of launches that name no resource class.
    base: Shape,
    classes: BTreeMap<String, Shape>,
    times: Times,
    /// For the Pods that are only tried.
    image: String,
}

/// Seconds.
#[derive(Clone, Copy, Debug)]
struct Times {
    /// For all that must be there before a job can begin; 0: no limit.
    start: u64,
    /// From SIGTERM to SIGKILL of a job.
    grace: u64,
    /// For the rest of the log after the job's end.
    drain: u64,
    /// Longest life of a Pod whose job has no timeout; 0: no limit.
    life: u64,
}

impl PodMaker {
    /// Reads the Pod template, and prepares what all Pods of a class have. `namespace` is that of the workers.
    ///
    /// # Errors
    /// Names the setting, or the file and the path in it.
    pub(super) fn open(options: &Options, namespace: &str) -> anyhow::Result<Self> {
        let template = Template::read(options.settings.pod_template.as_deref())?;
        let own =
            std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        Self::new(options, namespace, template, own)
    }

    /// `own` is the scaler's environment, of which the agent gets what says where to report to.
    fn new(
        options: &Options,
        namespace: &str,
        template: Template,
        own: impl Iterator<Item = (String, String)>,
    ) -> anyhow::Result<Self> {
        let common = Common::new(options, namespace, own)?;
        let image = Some(&options.worker_image).filter(|image| !image.is_empty()).unwrap_or(&common.agent_image);
        if let Err(problem) = image::check(image) {
            anyhow::bail!("--worker-image `{image}` {problem}; accepted: {}", image::ACCEPTED);
        }
        let shape = |class: Option<&str>| Shape::new(&common, template.over(&shape::ground(), class));
        let classes = template.classes().map(|class| (class.to_owned(), shape(Some(class)))).collect();
        let settings = &options.settings;
        Ok(Self {
            base: shape(None),
            classes,
            times: Times {
                start: whole_seconds(options.start_patience),
                grace: whole_seconds(options.stop_grace),
                drain: whole_seconds(options.drain_limit),
                life: whole_seconds(settings.max_lifetime),
            },
            image: image.clone(),
            template,
        })
    }

    /// The Pod as JSON, ready to be sent; `anchor_uid` is that of the ConfigMap which owns it. The same launch and owner
    /// make the same bytes.
    ///
    /// # Errors
    /// Why there can be no such Pod (an unknown resource class, …).
    pub(super) fn make(&self, launch: &Launch, anchor_uid: &str) -> Result<Vec<u8>, Outcome> {
        let Launch { key, spec, traceparent } = launch;
        check(launch)?;
        let shape = match spec.resource_class.as_str() {
            "" => &self.base,
            class => self.classes.get(class).ok_or_else(|| refused(self.unknown_class(class)))?,
        };
        let name = worker_name(key);
        let words: usize = spec.command.iter().chain(&spec.args).map(|word| word.len() + 3).sum();
        let env: usize = spec.env.iter().map(|(name, value)| name.len() + value.len() + 24).sum();
        let mut pod = Vec::with_capacity(shape.len() + words + env + 2048);
        for (text, slot) in shape.pieces() {
            pod.extend_from_slice(text);
            match slot {
                Some(Slot::Name) => string(&mut pod, &name),
                Some(Slot::Labels) => object(&mut pod, |pod| {
                    member(pod, NAME_LABEL.0, NAME_LABEL.1);
                    member(pod, MANAGED_BY_LABEL.0, MANAGED_BY_LABEL.1);
                    member(pod, TASK_LABEL, &task_label(&key.task_id));
                    member(pod, INDEX_LABEL, &key.index.to_string());
                    member(pod, ATTEMPT_LABEL, &key.attempt.to_string());
                    splice(pod, &shape.labels);
                }),
                Some(Slot::Annotations) => object(&mut pod, |pod| {
                    member(pod, TASK_ANNOTATION, &key.task_id);
                    if let Some(traceparent) = traceparent {
                        member(pod, TRACE_ANNOTATION, traceparent);
                    }
                    splice(pod, &shape.annotations);
                }),
                Some(Slot::Owner) => string(&mut pod, anchor_uid),
                Some(Slot::Deadline) => number(&mut pod, self.times.deadline(spec.timeout_seconds)),
                Some(Slot::Image) => string(&mut pod, &spec.image),
                Some(Slot::AgentArgs) => array(&mut pod, |pod| {
                    splice(pod, &shape.agent_args);
                    worker_flags(pod, key, &name);
                }),
                Some(Slot::JobArgs) => array(&mut pod, |pod| {
                    splice(pod, &shape.job_args);
                    worker_flags(pod, key, &name);
                    job_flags(pod, shape, launch);
                    if spec.timeout_seconds > 0 {
                        item(pod, &format!("--timeout={}s", spec.timeout_seconds));
                    }
                    item(pod, "--");
                    spec.command.iter().chain(&spec.args).for_each(|word| item(pod, &literal(word)));
                }),
                Some(Slot::JobEnv) => array(&mut pod, |pod| job_env(pod, shape, launch, &name)),
                None => {}
            }
        }
        if pod.len() > LARGEST {
            let size = pod.len();
            let message = format!(
                "the Pod would have {size} bytes, of which the cluster takes {LARGEST} at most: shorten command, args and env"
            );
            return Err(refused(message));
        }
        Ok(pod)
    }

    fn unknown_class(&self, class: &str) -> String {
        crate::apply::unknown_class(class, self.template.classes())
    }
}

impl Times {
    /// `activeDeadlineSeconds`: the cluster ends what the scaler, or the agent, should have ended.
    fn deadline(self, timeout_seconds: u32) -> Option<u64> {
        let life = match (timeout_seconds, self.start) {
            (0, _) => self.life,
            // What waits for ever has no deadline that begins with its waiting.
            (timeout, 0) if self.life > 0 => self.life + u64::from(timeout),
            (_, 0) => 0,
            (timeout, start) => start + u64::from(timeout) + self.grace + self.drain,
        };
        // The API takes an int32 here, and no 0.
        (life > 0).then(|| life.min(i32::MAX.unsigned_abs().into()))
    }
}

fn whole_seconds(time: std::time::Duration) -> u64 {
    time.as_secs().saturating_add(u64::from(time.subsec_nanos() > 0)).min(u32::MAX.into())
}

/// What the job is told about itself and its event, as `OTTO_JOB_…`, besides its ids. Though it is empty, so that a script
/// with `set -u` can read them all.
fn told(launch: &Launch, mut tell: impl FnMut(&str, &str)) {
    let Launch { key, spec, .. } = launch;
    tell("INDEX", &key.index.to_string());
    tell("ATTEMPT", &key.attempt.to_string());
    tell("REPOSITORY", &spec.repository);
    tell("COMMIT_SHA", &spec.commit_sha);
    tell("TRIGGERED_BY", &spec.triggered_by);
    tell("REASON", &spec.reason);
    tell("TIMESTAMP", &spec.timestamp);
}

/// The agent gives it to the job. As variables of the container it would be most of the Pod: the API server keeps a record
/// of every field of each variable (`managedFields`), and none of single arguments.
fn job_flags(pod: &mut Vec<u8>, shape: &Shape, launch: &Launch) {
    if shape.env.named_by_template {
        return;
    }
    told(launch, |name, value| item(pod, &format!("--set-env=OTTO_JOB_{name}={}", literal(value))));
    if let Some(traceparent) = &launch.traceparent {
        item(pod, &format!("--traceparent={}", literal(traceparent)));
    }
}

/// Environment of the job's container: ours first, if the template's variables or hooks use it, then the template's, then
/// the event's. Those of both have the event's value at the template's place, for what refers to them after it.
fn job_env(pod: &mut Vec<u8>, shape: &Shape, launch: &Launch, name: &str) {
    let Launch { key, spec, traceparent } = launch;
    if shape.env.named_by_template {
        let mut ours = |name: &str, value: &str| variable(pod, &["OTTO_JOB_", name], value);
        ours("TASK_ID", &key.task_id);
        ours("WORKER_ID", name);
        told(launch, ours);
        if let Some(traceparent) = traceparent {
            variable(pod, &["TRACEPARENT"], traceparent);
        }
    }
    let ours = |name: &str| name.starts_with("OTTO_") || (name == "TRACEPARENT" && traceparent.is_some());
    shape.env.write(pod, |name| spec.env.get(name).filter(|_| !ours(name)).map(String::as_str));
    let event = spec.env.iter().filter(|(name, _)| !ours(name) && !shape.env.has(name));
    event.for_each(|(name, value)| variable(pod, &[name], value));
}

fn worker_flags(pod: &mut Vec<u8>, key: &WorkerKey, name: &str) {
    // Joined, so that no value is taken for a flag.
    item(pod, &format!("--task-id={}", literal(&key.task_id)));
    item(pod, &format!("--worker-id={name}"));
    item(pod, &format!("--pod-name={name}"));
}

/// One more element of an array.
fn item(pod: &mut Vec<u8>, text: &str) {
    write::separate(pod);
    string(pod, text);
}

/// One more variable of a container, with a value that is taken as it is. The name is in parts.
fn variable(pod: &mut Vec<u8>, name: &[&str], value: &str) {
    write::separate(pod);
    object(pod, |pod| {
        member(pod, "name", &name.concat());
        if !value.is_empty() {
            member(pod, "value", &literal(value));
        }
    });
}

/// A text in a command, an argument or a value which Kubernetes is not to change: it expands `$(NAME)`, and makes one `$` of
/// two. <https://kubernetes.io/docs/tasks/inject-data-application/define-interdependent-environment-variables/>
fn literal(text: &str) -> Cow<'_, str> {
    if text.contains('$') { Cow::Owned(text.replace('$', "$$")) } else { Cow::Borrowed(text) }
}

/// What the cluster, or the kernel, would refuse for ever.
fn check(launch: &Launch) -> Result<(), Outcome> {
    let Launch { key, spec, .. } = launch;
    if let Err(problem) = image::check(&spec.image) {
        let message = format!("the image `{}` {problem} (accepted: {})", spec.image, image::ACCEPTED);
        return Err(Outcome { class: Class::Image, ..refused(message) });
    }
    if spec.command.first().is_none_or(String::is_empty) {
        return Err(refused("there is no command to run".to_owned()));
    }
    if key.task_id.contains('\0') || spec.command.iter().chain(&spec.args).any(|word| word.contains('\0')) {
        return Err(refused("the command holds a NUL character, which no argument of a program can".to_owned()));
    }
    for (name, value) in &spec.env {
        if !is_variable_name(name) {
            let message = format!("`{}` cannot be the name of an environment variable", name.escape_debug());
            return Err(refused(message));
        }
        if value.contains('\0') {
            return Err(refused(format!("the environment variable {name} holds a NUL character")));
        }
    }
    Ok(())
}

/// As the API servers of all versions take it (`IsEnvVarName`); newer ones take more.
fn is_variable_name(name: &str) -> bool {
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name != "."
        && !name.starts_with("..")
        && name.chars().all(inner)
}

fn refused(message: String) -> Outcome {
    Outcome { class: Class::Config, exit_code: None, signal: None, message }
}

/// Which worker a Pod is, by its labels, annotations and name. `None`: not one of ours; a copy under another name is none.
pub(super) fn key_of(metadata: &SeenMetadata) -> Option<WorkerKey> {
    let labels = metadata.labels.as_ref()?;
    let is = |label: (&str, &str)| labels.get(label.0).is_some_and(|value| value == label.1);
    let number = |label: &str| labels.get(label)?.parse().ok();
    let key = WorkerKey {
        task_id: metadata.annotations.as_ref()?.get(TASK_ANNOTATION)?.clone(),
        index: number(INDEX_LABEL)?,
        attempt: number(ATTEMPT_LABEL)?,
    };
    let ours = is(NAME_LABEL) && is(MANAGED_BY_LABEL) && metadata.name.as_ref() == Some(&worker_name(&key));
    ours.then_some(key)
}

/// What of a Pod that was stored is not as this worker's was sent, if nobody would know it again ([`key_of`]): a mutating
/// webhook or policy of the cluster changes what is created.
pub(super) fn altered(key: &WorkerKey, metadata: &SeenMetadata) -> Option<String> {
    if key_of(metadata).as_ref() == Some(key) {
        return None;
    }
    let (index, attempt, name) = (key.index.to_string(), key.attempt.to_string(), worker_name(key));
    let label = |label: &str| metadata.labels.as_ref()?.get(label);
    let annotation = metadata.annotations.as_ref().and_then(|all| all.get(TASK_ANNOTATION));
    let parts = [
        (format!("the label {}", NAME_LABEL.0), label(NAME_LABEL.0), NAME_LABEL.1),
        (format!("the label {}", MANAGED_BY_LABEL.0), label(MANAGED_BY_LABEL.0), MANAGED_BY_LABEL.1),
        (format!("the label {INDEX_LABEL}"), label(INDEX_LABEL), &index),
        (format!("the label {ATTEMPT_LABEL}"), label(ATTEMPT_LABEL), &attempt),
        (format!("the annotation {TASK_ANNOTATION}"), annotation, &key.task_id),
        ("the name".to_owned(), metadata.name.as_ref(), &name),
    ];
    let changed = parts.into_iter().filter_map(|(what, found, sent)| match found {
        Some(found) if found == sent => None,
        Some(found) => Some(format!("{what} is `{found}` instead of `{sent}`")),
        None => Some(format!("{what} is gone")),
    });
    Some(format!(
        "a mutating webhook or policy of the cluster changes what the scaler knows its Pods by ({}): exempt Pods with the \
         label {}={} from it",
        changed.collect::<Vec<_>>().join(", "),
        MANAGED_BY_LABEL.0,
        MANAGED_BY_LABEL.1
    ))
}

#[cfg(test)]
mod tests;

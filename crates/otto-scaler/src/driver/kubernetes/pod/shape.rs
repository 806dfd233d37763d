//! What all Pods of a resource class have in common, with slots for the rest.

use std::collections::BTreeMap;

use anyhow::{Context, bail, ensure};
use otto_service::client::parse_url;
use otto_service::settings::ByteSize;
use serde_json::{Map, Value, json};

use super::env::{Env, names};
use super::write::member;
use super::{item, literal, whole_seconds};
use crate::driver::kubernetes::names::{
    AGENT_CONTAINER, ANCHOR, JOB_CONTAINER, SHARED_PATH, SHARED_VOLUME, TOKEN_FILE, TOKEN_PATH, TOKEN_VOLUME,
};
use crate::driver::kubernetes::template::Part;
use crate::driver::kubernetes::{Options, image};

/// User and group of the agent's container, and group of what both containers write: as in the agent's image.
const AGENT_ID: u32 = 65532;
/// The agent's spool if no --worker-arg says otherwise, in bytes.
const SPOOL: u64 = 1 << 30;
/// Room in the shared volume beside the spool: the agent's program, the run directory, what the spool is over its bound for
/// a moment.
const BESIDE_SPOOL: u64 = 128 << 20;
/// Seconds that a Pod which is told to stop gets to send the rest of its log, after the job's own grace.
const FLUSH: u64 = 30;
/// How long the job's container waits, when the job has ended, for a log server that takes nothing: then the other
/// container goes on, and the scaler hears of the job's end. Were that one gone, nobody else would send what is left.
const HAND_OVER: &str = "2s";
/// A token of the cluster lives so long, in seconds; the kubelet renews it.
const TOKEN_LIFE: u32 = 3600;

/// What is filled in for each launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Slot {
    Name,
    Labels,
    Annotations,
    Owner,
    Deadline,
    Image,
    AgentArgs,
    JobArgs,
    JobEnv,
}

impl Slot {
    const ALL: [(Slot, &'static str); 9] = [
        (Slot::Name, "name"),
        (Slot::Labels, "labels"),
        (Slot::Annotations, "annotations"),
        (Slot::Owner, "owner"),
        (Slot::Deadline, "deadline"),
        (Slot::Image, "image"),
        (Slot::AgentArgs, "agent-args"),
        (Slot::JobArgs, "job-args"),
        (Slot::JobEnv, "job-env"),
    ];
}

/// The Pods of a class.
#[derive(Debug)]
pub(super) struct Shape {
    /// JSON, and what comes after it.
    pieces: Vec<(Box<[u8]>, Option<Slot>)>,
    /// Members that the template adds.
    pub(super) labels: Vec<u8>,
    pub(super) annotations: Vec<u8>,
    /// First elements of the arrays.
    pub(super) agent_args: Vec<u8>,
    pub(super) job_args: Vec<u8>,
    pub(super) env: Env,
}

/// What the Pods of all classes have in common.
#[derive(Debug)]
pub(super) struct Common {
    pub(super) agent_image: String,
    namespace: String,
    log_server: String,
    grace: std::time::Duration,
    drain_limit: std::time::Duration,
    worker_args: Vec<String>,
    token: Option<Value>,
    /// Where the agent reports to, as the scaler.
    pub(super) telemetry: BTreeMap<String, String>,
    /// Bytes.
    volume: u64,
}

impl Common {
    /// Takes from the settings what Pods are made of.
    ///
    /// # Errors
    /// Names the setting, and what is accepted.
    pub(super) fn new(
        options: &Options,
        namespace: &str,
        own: impl Iterator<Item = (String, String)>,
    ) -> anyhow::Result<Self> {
        let settings = &options.settings;
        let Some(agent_image) = settings.agent_image.clone().filter(|image| !image.is_empty()) else {
            bail!(
                "--agent-image is missing: with --driver kubernetes every worker's Pod runs the agent from it; accepted: {}",
                image::ACCEPTED
            );
        };
        if let Err(problem) = image::check(&agent_image) {
            bail!("--agent-image `{agent_image}` {problem}; accepted: {}", image::ACCEPTED);
        }
        let log_server = parse_url(&options.log_server)
            .map_err(|problem| anyhow::anyhow!("--worker-log-server `{}`: {problem}", options.log_server))?;
        if is_loopback(&log_server) {
            tracing::warn!(%log_server, "in a worker's Pod this address is the Pod itself: --worker-log-server says how workers reach the log server");
        }
        Ok(Self {
            agent_image,
            namespace: namespace.to_owned(),
            log_server,
            grace: options.stop_grace,
            drain_limit: options.drain_limit,
            worker_args: options.worker_args.clone(),
            token: token(options)?,
            telemetry: own.filter(|(name, _)| is_telemetry(name)).collect(),
            volume: spool(&options.worker_args)?.saturating_add(BESIDE_SPOOL),
        })
    }

    /// `otto-worker VERB …`, what every launch has of it.
    fn args(&self, verb: &[&str], flags: &[(&str, String)]) -> Vec<u8> {
        // Brackets that are cut off again, so that the commas are right.
        let mut json = vec![b'['];
        verb.iter().for_each(|word| item(&mut json, word));
        let mut flag = |name: &str, value: &str| item(&mut json, &format!("--{name}={}", literal(value)));
        flag("run-dir", &format!("{SHARED_PATH}/run"));
        flag("spool-dir", &format!("{SHARED_PATH}/run/spool"));
        flag("namespace", &self.namespace);
        flag("log-server", &self.log_server);
        if self.token.is_some() {
            flag("auth-token-file", &format!("{TOKEN_PATH}/{TOKEN_FILE}"));
        }
        let given = |name: &str| self.worker_args.iter().any(|word| flag_of(word) == Some(name));
        for (name, value) in flags.iter().filter(|(name, _)| !given(name)) {
            flag(name, value);
        }
        self.worker_args.iter().for_each(|word| item(&mut json, &literal(word)));
        json.split_off(1)
    }
}

/// The flag's name of a word of a command line.
fn flag_of(word: &str) -> Option<&str> {
    let name = word.strip_prefix("--")?;
    Some(name.split_once('=').map_or(name, |(name, _)| name))
}

/// Bytes of the agent's spool.
fn spool(worker_args: &[String]) -> anyhow::Result<u64> {
    let Some(at) = worker_args.iter().rposition(|word| flag_of(word) == Some("spool-bytes")) else { return Ok(SPOOL) };
    let size = match worker_args[at].split_once('=') {
        Some((_, size)) => Some(size),
        None => worker_args.get(at + 1).map(String::as_str),
    };
    let size: ByteSize = size
        .context("no size")
        .and_then(|size| size.parse().map_err(|problem: String| anyhow::anyhow!(problem)))
        .context("--worker-arg --spool-bytes")?;
    Ok(size.as_u64())
}

/// The source of the volume with the token.
fn token(options: &Options) -> anyhow::Result<Option<Value>> {
    let settings = &options.settings;
    if let Some(secret) = &settings.worker_token_secret {
        let (name, key) = secret.split_once('/').unwrap_or((secret, ""));
        let name_char = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
        let key_char = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        ensure!(
            !name.is_empty() && name.chars().all(name_char) && !key.is_empty() && key.chars().all(key_char),
            "--worker-token-secret `{secret}`; accepted: NAME/KEY, a Secret in the workers' namespace and a key of it"
        );
        let items = json!([{ "key": key, "path": TOKEN_FILE }]);
        // For all: without the Pod's group neither the agent nor the job, whoever they run as, could read it otherwise.
        return Ok(Some(json!({ "secret": { "secretName": name, "defaultMode": 0o444, "items": items } })));
    }
    let Some(audience) = &settings.worker_token_audience else { return Ok(None) };
    ensure!(!audience.is_empty(), "--worker-token-audience is empty; accepted: the name that the log server goes by");
    let source = json!({ "audience": audience, "expirationSeconds": TOKEN_LIFE, "path": TOKEN_FILE });
    Ok(Some(json!({ "projected": { "sources": [{ "serviceAccountToken": source }] } })))
}

fn is_loopback(url: &str) -> bool {
    let host = url.parse::<http::Uri>().ok().and_then(|url| url.host().map(str::to_owned)).unwrap_or_default();
    let address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

/// Of the scaler's environment, what the agent gets: where the scaler reports to, the agent does. Not credentials, which
/// everybody who may read Pods would see, and not files, which are elsewhere in another container.
fn is_telemetry(name: &str) -> bool {
    let alone = ["OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES"];
    let withheld = ["HEADERS", "CERTIFICATE", "CLIENT_KEY", "CONFIG_FILE"];
    name == "RUST_LOG"
        || (name.starts_with("OTEL_") && !alone.contains(&name) && !withheld.iter().any(|end| name.ends_with(end)))
}

/// What is there unless the template says otherwise.
pub(in crate::driver::kubernetes) fn ground() -> Part {
    let spec = json!({
        "automountServiceAccountToken": false,
        "securityContext": {
            "fsGroup": AGENT_ID,
            // A large volume of the template's is not gone through for every Pod.
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": { "type": "RuntimeDefault" },
        },
        "containers": [
            {
                "name": AGENT_CONTAINER,
                "resources": {
                    "requests": { "cpu": "10m", "memory": "16Mi" },
                    "limits": { "cpu": "1", "memory": "128Mi" },
                },
                "securityContext": {
                    "runAsNonRoot": true,
                    "runAsUser": AGENT_ID,
                    "runAsGroup": AGENT_ID,
                    "allowPrivilegeEscalation": false,
                    "readOnlyRootFilesystem": true,
                    "capabilities": { "drop": ["ALL"] },
                    // Also where the template gives the job's, or the whole Pod, another one.
                    "seccompProfile": { "type": "RuntimeDefault" },
                },
            },
            // Images that are made to run as root need capabilities such as CHOWN and SETUID to install anything; what
            // gains more than it was started with is refused to processes on this machine, too.
            { "name": JOB_CONTAINER, "securityContext": { "allowPrivilegeEscalation": false } },
        ],
    });
    let Value::Object(spec) = spec else { return Part::default() };
    Part { spec, ..Part::default() }
}

impl Shape {
    /// Puts what is the scaler's own on top of the layers in `part`.
    pub(super) fn new(common: &Common, mut part: Part) -> Self {
        // What stands for a slot must not be in anything that the template says.
        let said = format!("{:?} {common:?}", part.spec);
        let mark = (0_u32..).map(|n| format!("otto-slot-{n}-")).find(|mark| !said.contains(mark.as_str()));
        let mark = mark.unwrap_or_default();
        let slot = |name: &str| Value::String(format!("{mark}{name}"));

        let spec = &mut part.spec;
        if spec.get("securityContext").and_then(|context| context.get("fsGroup")).is_none() {
            tracing::warn!(
                "the Pod template takes away securityContext.fsGroup: unless the cluster gives Pods one, a job that runs as \
                 another user than the agent keeps its spool from the drainer, and lines of a job that is killed may be lost"
            );
        }
        let mut others = Vec::new();
        let (mut agent, mut job) = (Map::new(), Map::new());
        if let Some(Value::Array(containers)) = spec.remove("containers") {
            for container in containers {
                match container {
                    Value::Object(one) if one.get("name") == Some(&json!(AGENT_CONTAINER)) => agent = one,
                    Value::Object(one) if one.get("name") == Some(&json!(JOB_CONTAINER)) => job = one,
                    other => others.push(other),
                }
            }
        }
        let mut mounts = vec![json!({ "name": SHARED_VOLUME, "mountPath": SHARED_PATH })];
        let size = common.volume.div_ceil(1 << 20);
        let mut volumes = vec![json!({ "name": SHARED_VOLUME, "emptyDir": { "sizeLimit": format!("{size}Mi") } })];
        if let Some(token) = &common.token {
            mounts.push(json!({ "name": TOKEN_VOLUME, "mountPath": TOKEN_PATH, "readOnly": true }));
            let mut volume = token.clone();
            volume["name"] = json!(TOKEN_VOLUME);
            volumes.push(volume);
        }
        let node = json!({ "name": "OTTO_NODE_NAME", "valueFrom": { "fieldRef": { "fieldPath": "spec.nodeName" } } });

        let program = format!("{SHARED_PATH}/bin");
        agent.insert("image".into(), json!(common.agent_image));
        agent.insert("command".into(), json!(["/otto-worker"]));
        agent.insert("args".into(), slot("agent-args"));
        // Why an agent failed (a flag that it does not know, say) is in its last lines.
        agent.insert("terminationMessagePolicy".into(), json!("FallbackToLogsOnError"));
        let install = json!({ "exec": { "command": ["/otto-worker", "install", program] } });
        agent.insert("lifecycle".into(), json!({ "postStart": install }));
        let mut env = vec![node.clone()];
        let named = agent.get("env").map(names).unwrap_or_default();
        let telemetry = common.telemetry.iter().filter(|(name, _)| !named.contains(*name));
        env.extend(telemetry.map(|(name, value)| json!({ "name": name, "value": literal(value) })));
        prepend(&mut agent, "env", env);
        prepend(&mut agent, "volumeMounts", mounts.clone());
        same_as_pod(&mut agent, spec);
        disk_of_its_own(&mut agent, &job, size);

        job.insert("image".into(), slot("image"));
        job.insert("command".into(), json!([format!("{program}/otto-worker")]));
        job.insert("args".into(), slot("job-args"));
        let said = Value::from(job.clone()).to_string();
        let named_by_template = ["OTTO_JOB_", "TRACEPARENT"].iter().any(|name| said.contains(name));
        let env = Env::new(common, &node, job.remove("env"), named_by_template);
        job.insert("env".into(), slot("job-env"));
        prepend(&mut job, "volumeMounts", mounts);
        may_gain_privileges(&mut job);

        let mut containers = vec![Value::Object(agent), Value::Object(job)];
        containers.append(&mut others);
        spec.insert("containers".into(), Value::Array(containers));
        prepend(spec, "volumes", volumes);
        spec.insert("restartPolicy".into(), json!("Never"));
        spec.insert("enableServiceLinks".into(), json!(false));
        spec.insert("terminationGracePeriodSeconds".into(), json!(whole_seconds(common.grace) + FLUSH));
        spec.insert("activeDeadlineSeconds".into(), slot("deadline"));

        let owner = json!({ "apiVersion": "v1", "kind": "ConfigMap", "name": ANCHOR, "uid": slot("owner") });
        let pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": slot("name"),
                "labels": slot("labels"),
                "annotations": slot("annotations"),
                "ownerReferences": [owner],
            },
            "spec": part.spec,
        });
        let exit_file = ("exit-file", "/dev/termination-log".to_owned());
        let grace = ("grace", format!("{}ms", common.grace.as_millis()));
        let drain = ("drain-timeout", format!("{}s", whole_seconds(common.drain_limit)));
        let hand_over = ("hand-over", HAND_OVER.to_owned());
        Self {
            pieces: cut(&pod.to_string(), &mark),
            labels: members(&part.labels),
            annotations: members(&part.annotations),
            agent_args: common.args(&["drain", "--wait"], std::slice::from_ref(&drain)),
            // What programs may gain is the security context's to say; which signal stops a container, its image's.
            job_args: common.args(
                &["run", "--allow-privilege-escalation", "--any-signal-stops"],
                &[exit_file, grace, hand_over, drain],
            ),
            env,
        }
    }

    /// The JSON, piece by piece, and what is to be filled in after each.
    pub(super) fn pieces(&self) -> impl Iterator<Item = (&[u8], Option<Slot>)> {
        self.pieces.iter().map(|(text, slot)| (&**text, *slot))
    }

    /// Bytes of what is the same in all Pods.
    pub(super) fn len(&self) -> usize {
        let pieces: usize = self.pieces.iter().map(|(text, _)| text.len()).sum();
        pieces
            + self.labels.len()
            + self.annotations.len()
            + self.agent_args.len()
            + self.job_args.len()
            + self.env.all.len()
    }
}

/// Takes away what a container has of its Pod anyway.
fn same_as_pod(container: &mut Map<String, Value>, spec: &Map<String, Value>) {
    let profile = |context: Option<&Value>| context.and_then(|context| context.get("seccompProfile")).cloned();
    let Some(of_pod) = profile(spec.get("securityContext")) else { return };
    if profile(container.get("securityContext")) == Some(of_pod)
        && let Some(Value::Object(context)) = container.get_mut("securityContext")
    {
        context.remove("seccompProfile");
    }
}

/// A limit of disk holds for the Pod as a whole: for the sum of its containers' limits, volumes such as ours included
/// (`podEphemeralStorageLimitEviction`, `pkg/kubelet/eviction` of Kubernetes). Where the job has one, the agent's spool must not
/// use it up. Where it has none, the agent's would be the Pod's.
fn disk_of_its_own(agent: &mut Map<String, Value>, job: &Map<String, Value>, mebibytes: u64) {
    const DISK: &str = "ephemeral-storage";
    let says = |container: &Map<String, Value>, field: &str| {
        container.get("resources").and_then(|resources| resources.get(field)?.get(DISK)).is_some()
    };
    if !says(job, "limits") || says(agent, "limits") || says(agent, "requests") {
        return;
    }
    let Some(resources) = agent.entry("resources").or_insert_with(|| json!({})).as_object_mut() else { return };
    if let Some(limits) = resources.entry("limits").or_insert_with(|| json!({})).as_object_mut() {
        limits.insert(DISK.to_owned(), json!(format!("{mebibytes}Mi")));
    }
}

/// A privileged container gains privileges by being one: the API refuses it together with our default.
fn may_gain_privileges(job: &mut Map<String, Value>) {
    let Some(Value::Object(context)) = job.get_mut("securityContext") else { return };
    let added = context.get("capabilities").and_then(|all| all.get("add")).and_then(Value::as_array);
    let admin = |name: &Value| matches!(name.as_str(), Some("SYS_ADMIN" | "CAP_SYS_ADMIN"));
    let privileged = context.get("privileged") == Some(&Value::Bool(true));
    if privileged || added.is_some_and(|all| all.iter().any(admin)) {
        context.remove("allowPrivilegeEscalation");
    }
}

fn prepend(object: &mut Map<String, Value>, field: &str, mut first: Vec<Value>) {
    if let Some(Value::Array(rest)) = object.remove(field) {
        first.extend(rest);
    }
    object.insert(field.to_owned(), Value::Array(first));
}

fn members(texts: &Map<String, Value>) -> Vec<u8> {
    let mut json = vec![b'{'];
    texts.iter().for_each(|(name, value)| member(&mut json, name, value.as_str().unwrap_or_default()));
    json.split_off(1)
}

/// Cuts JSON at its slots, the quotes around them included.
fn cut(mut json: &str, mark: &str) -> Vec<(Box<[u8]>, Option<Slot>)> {
    let mut pieces = Vec::new();
    let start = format!("\"{mark}");
    while let Some((text, rest)) = json.split_once(&start) {
        let Some((name, rest)) = rest.split_once('"') else { break };
        let slot = Slot::ALL.iter().find(|(_, other)| *other == name).map(|(slot, _)| *slot);
        pieces.push((text.as_bytes().into(), slot));
        json = rest;
    }
    pieces.push((json.as_bytes().into(), None));
    pieces
}

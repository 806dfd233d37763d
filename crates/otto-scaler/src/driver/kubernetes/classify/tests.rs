//! Statuses of real Pods: each was provoked in a kind cluster (Kubernetes 1.34, containerd, cgroup v1), and what the watch
//! told of it was kept, without what is of one machine alone; and made ones,
//! after Kubernetes' documentation and sources, where one node alone cannot provoke it.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn recorded(name: &str) -> SeenPod {
    let path = format!("{}/src/driver/kubernetes/classify/recorded/{name}.json", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn made(pod: Value) -> SeenPod {
    serde_json::from_value(pod).unwrap()
}

/// `STATE [CLASS[!|~]: MESSAGE]`: `!` is hopeless, `~` usual; `+`: it has begun; `.`: nothing more will be sent.
fn told(life: &Life) -> String {
    let began = if life.started_at.is_some() { "+" } else { "" };
    let drained = if life.drained { "." } else { "" };
    let outcome = |outcome: &Outcome| {
        let code = outcome.exit_code.map(|code| format!(" {code}")).unwrap_or_default();
        let signal = outcome.signal.map(|signal| format!("/{signal}")).unwrap_or_default();
        format!("{}{code}{signal}: {}", outcome.class.as_str(), outcome.message)
    };
    match &life.state {
        State::Created { waiting: None } => format!("created{began}{drained}"),
        State::Created { waiting: Some(waiting) } => {
            let mark = [("!", waiting.hopeless), ("~", waiting.usual)].into_iter().filter(|(_, is)| *is);
            let mark: String = mark.map(|(mark, _)| mark).collect();
            format!("waiting{began}{drained} {mark}{}", outcome(&waiting.outcome))
        }
        State::Running => format!("running{began}{drained}"),
        State::Ended { at, outcome: how } => {
            assert!(*at >= 0, "no time: {at}");
            format!("ended{began}{drained} {}", outcome(how))
        }
        State::Gone => "gone".to_owned(),
    }
}

/// Name, whether this was the last that the API server told of it, and what is to be told of it.
const RECORDED: &[(&str, bool, &str)] = &[
    ("success", false, "ended+. success 0: "),
    ("success-draining", false, "ended+ success 0: "),
    ("success-then-tainted", true, "ended+. success 0: "),
    ("success-then-evicted", true, "ended+. success 0: "),
    ("created", false, "waiting ~unschedulable: not scheduled: no scheduler has looked at it"),
    ("scheduled", false, "created"),
    (
        "setting-up",
        false,
        "waiting ~volume: waits for its volumes, its network or its images on node node-1; the Pod's events say more",
    ),
    ("running", false, "running+"),
    ("exited", false, "ended+. exited 3: the job ended with exit code 3"),
    ("oom-child", false, "ended+. out_of_memory 137/9: killed for using more memory than its limit of 32Mi"),
    ("oom-whole", false, "ended+ out_of_memory 137/9: killed for using more memory than its limit of 32Mi"),
    (
        "oom-whole-then-tainted",
        true,
        "ended+. out_of_memory 137/9: killed for using more memory than its limit of 32Mi",
    ),
    (
        "image-missing",
        false,
        "waiting image: image localhost:5001/acme/nothing:1 cannot be pulled: not found in the registry localhost:5001",
    ),
    (
        "image-missing-backoff",
        false,
        "waiting image: image localhost:5001/acme/nothing:1 cannot be pulled: not found in the registry localhost:5001",
    ),
    (
        "image-private",
        false,
        "waiting image: image localhost:5001/private/x:1 cannot be pulled: pulling from host localhost:5001 failed with status code [manifests 1]: 401 Unauthorized",
    ),
    (
        "image-unreachable",
        false,
        r#"waiting infrastructure: image registry.invalid/acme/x:1 cannot be pulled: Head "https://registry.invalid/v2/acme/x/manifests/1": dial tcp: lookup registry.invalid on 172.18.0.1:53: no such host"#,
    ),
    (
        "image-bad-name",
        false,
        "waiting !image: image acme/X y:1 has a name that cannot be: invalid reference format: repository name (acme/X y) must be lowercase",
    ),
    (
        "image-never",
        false,
        "waiting !image: image acme/absent:1 is not there on node node-1, and may not be pulled (imagePullPolicy Never)",
    ),
    ("image-missing-deleting", false, "created"),
    ("image-missing-deleted", true, "ended. stopped: its Pod was deleted before the job began"),
    ("unschedulable", false, "waiting unschedulable: not scheduled: 0/1 nodes are available: 1 Insufficient cpu"),
    ("unschedulable-deleted", true, "ended. stopped: its Pod was deleted before the job began"),
    (
        "selector",
        false,
        "waiting unschedulable: not scheduled: 0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector",
    ),
    ("gated", false, "waiting unschedulable: not scheduled: held back by a scheduling gate of the Pod"),
    ("no-scheduler", false, "waiting ~unschedulable: not scheduled: no scheduler has looked at it"),
    ("config-secret", false, r#"waiting config: the job's container cannot be configured: secret "absent" not found"#),
    (
        "config-key",
        false,
        "waiting config: the job's container cannot be configured: couldn't find key z in ConfigMap default/some",
    ),
    (
        "config-root",
        false,
        "waiting !config: the job's container cannot be configured: container has runAsNonRoot and image has non-numeric user (root), cannot verify user is non-root",
    ),
    ("config-user", false, "waiting config: the job's container cannot be started: no users found"),
    (
        "start-missing",
        false,
        r#"ended. infrastructure: the job's container cannot be started: exec: "/otto/bin/nothing": stat /otto/bin/nothing: no such file or directory"#,
    ),
    (
        "start-denied",
        false,
        r#"ended. config: the job's container cannot be started: exec: "/otto": permission denied"#,
    ),
    (
        "start-mount",
        false,
        r#"ended. config: the job's container cannot be started: error mounting "/var/lib/kubelet/pods/864beee3-9f72-4b75-96c5-956d135732aa/volume-subpaths/otto/job/1" to rootfs at "/bin/sh": mount /var/lib/kubelet/pods/864beee3-9f72-4b75-96c5-956d135732aa/volume-subpaths/otto/job/1:/bin/sh (via /proc/self/fd/6), flags: 0x5000: not a directory"#,
    ),
    (
        "start-memory",
        false,
        "ended. config: the job's memory limit is too low to start a program: error setting cgroup config for procHooks process: unable to set memory limit to 1048576 (current usage: 2486272, peak usage: 2641920)",
    ),
    (
        "start-missing-then-tainted",
        true,
        r#"ended. infrastructure: the job's container cannot be started: exec: "/otto/bin/nothing": stat /otto/bin/nothing: no such file or directory"#,
    ),
    (
        "agent-image",
        false,
        "ended. infrastructure: the agent's image localhost:5001/ottoscaler/otto-worker:none (--agent-image) cannot be pulled: not found in the registry localhost:5001",
    ),
    (
        "agent-image-name",
        false,
        "ended. config: the agent's image OTTO (--agent-image) has a name that cannot be: invalid reference format: repository name (library/OTTO) must be lowercase",
    ),
    ("agent-image-deleted", true, "ended. infrastructure: the agent (container `otto`) did not start"),
    (
        "agent-hook",
        false,
        "ended. infrastructure: the agent (container `otto`) was killed before the job began: its postStart hook, which installs it, failed, perhaps",
    ),
    (
        "agent-start",
        false,
        r#"ended. infrastructure: the agent (container `otto`) could not start (StartError) before the job began: exec: "/none": stat /none: no such file or directory"#,
    ),
    (
        "volume-secret",
        false,
        "waiting ~volume: waits for its volumes, its network or its images on node node-1; the Pod's events say more",
    ),
    (
        "out-of-cpu",
        false,
        "ended. unschedulable: rejected by node node-1 (OutOfcpu): Node didn't have enough resource: cpu, requested: 1000000, used: 1350, capacity: 2000",
    ),
    (
        "node-affinity",
        false,
        "ended. unschedulable: rejected by node node-1 (NodeAffinity): Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector",
    ),
    (
        "sysctl",
        false,
        r#"ended. admission: rejected by node node-1 (SysctlForbidden): forbidden sysctl: "kernel.msgmax" not allowlisted"#,
    ),
    (
        "deadline",
        false,
        "ended+. deadline 143/15: the Pod was active longer than it may be (activeDeadlineSeconds), and was stopped",
    ),
    (
        "deadline-pending",
        false,
        "ended. deadline: the Pod was active longer than it may be (activeDeadlineSeconds), and was stopped",
    ),
    (
        "evicted-disk",
        false,
        "ended+. exited 143/15: stopped for using more disk than its limit: Pod ephemeral local storage usage exceeds the total limit of containers 2Mi",
    ),
    (
        "evicted-request",
        true,
        "ended+. evicted 143/15: evicted from node node-1 by request (the node was drained, or the like)",
    ),
    ("evicting", false, "running+"),
    (
        "tainted",
        true,
        "ended+. node_lost 143/15: node node-1 became unreachable or not ready, or was tainted so that the Pod had to leave",
    ),
    ("preempted", true, "ended+. preempted 143/15: preempted to make room for a Pod of higher priority"),
    ("pod-gc", false, "ended. node_lost: node gone-node was lost: node no longer exists"),
    ("node-unreachable", false, "created"),
    ("node-gone", true, "ended. node_lost: node node-2 was lost: node no longer exists"),
    ("deleted-running", true, "ended+. stopped 143/15: the job was told to stop; the job ended by signal 15"),
    (
        "deleted-stubborn",
        true,
        "ended+. stopped 137/9: its Pod was deleted; it did not stop within its grace period and was killed",
    ),
    ("deleted-forced", true, "ended+. stopped: its Pod was deleted while the job ran; nobody knows how it ended"),
    ("deleted-draining", true, "ended+. exited 4: the job ended with exit code 4"),
    (
        "agent-killed",
        false,
        "ended+ agent_lost 137/9: nobody knows how the job ended: its agent was killed by signal 9 (SIGKILL)",
    ),
    (
        "job-vanished",
        false,
        "ended node_lost: node node-1 was restarted, or lost sight of the job; nobody knows how it ended",
    ),
    (
        "rebooted",
        false,
        "ended. node_lost: node node-1 was restarted, or lost sight of the job; nobody knows how it ended",
    ),
    (
        "init-failed",
        false,
        "ended. infrastructure: init container `prepare` of the Pod template ended with exit code 7",
    ),
    (
        "init-image",
        false,
        "waiting infrastructure: image localhost:5001/acme/nothing:1 of container `prepare` of the Pod template cannot be pulled: not found in the registry localhost:5001",
    ),
    ("agent-failed", false, "ended+ infrastructure 125: the agent failed before it began the job"),
];

#[test]
fn what_happened_to_real_pods() {
    let mut wrong = Vec::new();
    for (name, deleted, expected) in RECORDED {
        let life = classify(&recorded(name), *deleted);
        if let State::Ended { at, .. } = life.state {
            assert!(at > 1_700_000_000_000, "{name}: no time");
        }
        let told = told(&life);
        if told != *expected {
            wrong.push(format!("    (\"{name}\", {deleted}, r#\"{told}\"#),"));
        }
    }
    assert!(wrong.is_empty(), "told otherwise:\n{}", wrong.join("\n"));
}

/// A Pod with the containers of a worker in these states.
fn worker(status: Value, job: Value, agent: Value) -> Value {
    let mut status = status;
    status["containerStatuses"] = json!([
        {"name": "otto", "image": "otto:1", "state": agent},
        {"name": "job", "image": "acme/x:1", "state": job},
        {"name": "sidecar", "image": "acme/s:1", "state": {"terminated": {"exitCode": 1}}},
    ]);
    json!({"spec": {"nodeName": "n"}, "status": status})
}

fn running() -> Value {
    json!({"running": {"startedAt": "2026-01-02T03:04:05Z"}})
}

fn terminated(code: i32, reason: &str, message: &str) -> Value {
    json!({"terminated": {
        "exitCode": code, "reason": reason, "message": message,
        "startedAt": "2026-01-02T03:04:05Z", "finishedAt": "2026-01-02T03:04:15Z",
    }})
}

fn reported(code: i32, signal: Option<i32>, class: &str, message: &str) -> Value {
    let report = json!({
        "exit_code": code, "signal": signal, "class": class, "message": message,
        "started_at_ms": 1_767_323_045_100_i64, "ended_at_ms": 1_767_323_055_200_i64,
    });
    terminated(code, "Error", &report.to_string())
}

fn disrupted(reason: &str, at: &str, message: &str) -> Value {
    json!({"phase": "Failed", "conditions": [
        {"type": "DisruptionTarget", "status": "True", "reason": reason, "message": message, "lastTransitionTime": at},
    ]})
}

/// Made after Kubernetes' documentation and the kubelet's sources; and what nobody should ever see.
#[test]
fn what_happens_to_pods_that_were_made_up() {
    let failed = |reason: &str, message: &str| json!({"phase": "Failed", "reason": reason, "message": message});
    let on_time = "2026-01-02T03:04:10Z";
    let pressure = "The node was low on resource: memory. Threshold quantity: 100Mi, available: 80Mi. ";
    let waits = |reason: &str, message: &str| json!({"waiting": {"reason": reason, "message": message}});
    let cases = [
        // As kwok's simplest stages leave them.
        (json!({"status": {"phase": "Succeeded"}}), false, "ended. success 0: "),
        (
            json!({"status": {"phase": "Failed"}}),
            false,
            "ended. exited: the Pod failed, and its status does not say why",
        ),
        (json!({"status": {"phase": "Running"}}), false, "running"),
        (
            json!({"status": {"phase": "Running"}}),
            true,
            "ended. stopped: its Pod was deleted while the job ran; nobody knows how it ended",
        ),
        (
            worker(json!({"phase": "Failed"}), terminated(1, "Error", ""), terminated(0, "Completed", "")),
            false,
            "ended+. exited 1: the job ended with exit code 1",
        ),
        (
            worker(
                json!({"phase": "Failed"}),
                terminated(2, "Error", ""),
                terminated(2, "Error", "\nerror: unexpected argument '--speed' found\n\nUsage: otto-worker drain"),
            ),
            false,
            "ended+. config: the agent does not take a flag or variable that it is given (--worker-arg, or the Pod template): unexpected argument '--speed' found",
        ),
        (
            worker(json!({"phase": "Failed"}), terminated(2, "Error", ""), terminated(0, "Completed", "")),
            false,
            "ended+. exited 2: the job ended with exit code 2",
        ),
        // A sidecar that was ended with the Pod is not what ended it.
        (
            worker(
                json!({"phase": "Failed", "initContainerStatuses": [{"name": "db", "state": {"terminated": {"exitCode": 137}}}]}),
                terminated(128, "StartError", "exec: \"/otto/bin/otto-worker\": no such file or directory"),
                terminated(1, "Error", ""),
            ),
            false,
            "ended+. infrastructure: the agent (container `otto`) ended with exit code 1 before the job began",
        ),
        // An init container that goes on and on.
        (
            json!({"spec": {"nodeName": "n"}, "status": {"phase": "Pending",
                "conditions": [{"type": "Initialized", "status": "False", "reason": "ContainersNotInitialized",
                    "message": "containers with incomplete status: [prepare]"}],
                "initContainerStatuses": [{"name": "prepare", "state": running()}],
                "containerStatuses": [{"name": "job", "state": {"waiting": {"reason": "PodInitializing"}}}]}}),
            false,
            "waiting ~infrastructure: waits for init containers of the Pod template to be done: prepare",
        ),
        // One whose image is being pulled: events tell.
        (
            json!({"spec": {"nodeName": "n"}, "status": {"phase": "Pending",
                "conditions": [{"type": "Initialized", "status": "False", "reason": "ContainersNotInitialized",
                    "message": "containers with incomplete status: [fetch]"}],
                "initContainerStatuses": [{"name": "db", "state": running()},
                    {"name": "fetch", "state": {"waiting": {"reason": "PodInitializing"}}}],
                "containerStatuses": [{"name": "job", "state": {"waiting": {"reason": "PodInitializing"}}}]}}),
            false,
            "waiting ~infrastructure: waits for the image of an init container of the Pod template, or for its start: fetch",
        ),
        // It has `volume` in its name.
        (
            worker(
                json!({"phase": "Pending"}),
                waits("CreateContainerConfigError", "secret \"build-volume\" not found"),
                running(),
            ),
            false,
            "waiting config: the job's container cannot be configured: secret \"build-volume\" not found",
        ),
        // A sidecar that never comes is not waited for.
        (
            json!({"spec": {"nodeName": "n"}, "status": {"phase": "Pending", "containerStatuses": [
                {"name": "otto", "state": terminated(0, "Completed", "")},
                {"name": "job", "state": terminated(137, "Error", "")},
                {"name": "proxy", "state": waits("ImagePullBackOff", "")}]}}),
            false,
            "ended+. agent_lost 137/9: nobody knows how the job ended: its agent was killed by signal 9 (SIGKILL)",
        ),
        // Told by the kubelet.
        (
            worker(failed("Evicted", pressure), terminated(137, "Error", ""), terminated(137, "Error", "")),
            false,
            "ended+. evicted 137/9: evicted from node n: The node was low on resource: memory. Threshold quantity: 100Mi, available: 80Mi",
        ),
        (
            worker(
                failed("Preempting", "Preempted in order to admit critical pod"),
                terminated(143, "Error", ""),
                running(),
            ),
            false,
            "ended+. preempted 143/15: preempted on node n: Preempted in order to admit critical pod",
        ),
        (
            worker(
                failed("Terminated", "Pod was terminated in response to imminent node shutdown."),
                reported(143, Some(15), "stopped", "told"),
                running(),
            ),
            false,
            "ended+. node_lost 143/15: node n was shut down: Pod was terminated in response to imminent node shutdown",
        ),
        (
            json!({"spec": {"nodeName": "n"}, "status": failed("NodeShutdown", "Pod was rejected as the node is shutting down.")}),
            false,
            "ended. node_lost: node n was shut down: Pod was rejected as the node is shutting down",
        ),
        (
            json!({"spec": {"nodeName": "n"}, "status": failed("UnexpectedAdmissionError", "Pod was rejected: Allocate failed due to no healthy devices present; cannot allocate unhealthy devices acme.com/gpu, which is unexpected")}),
            false,
            "ended. infrastructure: rejected by node n (UnexpectedAdmissionError): Allocate failed due to no healthy devices present; cannot allocate unhealthy devices acme.com/gpu, which is unexpected",
        ),
        // Reasons that are not known here.
        (
            json!({"spec": {"nodeName": "n"}, "status": failed("VolumeAttachmentLimitExceeded", "Pod was rejected: Node has no room for another volume")}),
            false,
            "ended. infrastructure: rejected by node n (VolumeAttachmentLimitExceeded): Node has no room for another volume",
        ),
        (
            worker(
                failed("ProviderFailed", "no capacity"),
                waits("ContainerCreating", ""),
                waits("ContainerCreating", ""),
            ),
            false,
            "ended. infrastructure: rejected by node n (ProviderFailed): no capacity",
        ),
        (
            worker(failed("Tired", ""), running(), running()),
            false,
            "ended+. infrastructure: node n ended the Pod (Tired)",
        ),
        // The job's disk, and others'.
        (
            worker(
                failed("Evicted", "Container job exceeded its local ephemeral storage limit \"1Gi\". "),
                reported(143, Some(15), "stopped", "told"),
                running(),
            ),
            false,
            r#"ended+. exited 143/15: stopped for using more disk than its limit: Container job exceeded its local ephemeral storage limit "1Gi""#,
        ),
        (
            worker(
                failed("Evicted", "Usage of EmptyDir volume \"scratch\" exceeds the limit \"1Gi\". "),
                terminated(137, "Error", ""),
                running(),
            ),
            false,
            r#"ended+. exited 137/9: stopped for using more disk than its limit: Usage of EmptyDir volume "scratch" exceeds the limit "1Gi""#,
        ),
        (
            worker(
                failed("Evicted", "Usage of EmptyDir volume \"otto\" exceeds the limit \"80Mi\". "),
                terminated(137, "Error", ""),
                running(),
            ),
            false,
            r#"ended+. evicted 137/9: evicted from node n: Usage of EmptyDir volume "otto" exceeds the limit "80Mi""#,
        ),
        (
            worker(
                failed("Evicted", "Container sidecar exceeded its local ephemeral storage limit \"1Gi\". "),
                terminated(137, "Error", ""),
                running(),
            ),
            false,
            r#"ended+. evicted 137/9: evicted from node n: Container sidecar exceeded its local ephemeral storage limit "1Gi""#,
        ),
        // Nobody hears of its node: it may run there.
        (
            worker(
                json!({"phase": "Unknown", "reason": "NodeLost", "message": "Node n which was running pod x is unresponsive"}),
                running(),
                running(),
            ),
            false,
            "running+",
        ),
        (
            worker(
                json!({"phase": "Unknown", "reason": "NodeLost", "message": "Node n which was running pod x is unresponsive"}),
                running(),
                running(),
            ),
            true,
            "ended+. node_lost: node n was lost: Node n which was running pod x is unresponsive",
        ),
        (json!({"status": {"phase": "Unknown"}}), true, "ended. node_lost: its node was lost"),
        (
            worker(disrupted("TerminationByKubelet", on_time, pressure), terminated(137, "Error", ""), running()),
            false,
            "ended+. evicted 137/9: node n ended the Pod: The node was low on resource: memory. Threshold quantity: 100Mi, available: 80Mi",
        ),
        (
            worker(disrupted("ByACat", on_time, ""), terminated(137, "Error", ""), running()),
            false,
            "ended+. evicted 137/9: evicted from node n (ByACat)",
        ),
        // Done to the Pod long after the job had ended: it drained its log.
        (
            worker(
                disrupted("EvictionByEvictionAPI", "2026-01-02T03:09:10Z", ""),
                terminated(137, "Error", ""),
                running(),
            ),
            false,
            "ended+. agent_lost 137/9: nobody knows how the job ended: its agent was killed by signal 9 (SIGKILL)",
        ),
        // Told by the agent.
        (
            worker(failed("Evicted", pressure), reported(0, None, "success", ""), running()),
            false,
            "ended+. success 0: ",
        ),
        (
            worker(json!({}), reported(139, Some(11), "exited", "the job ended by signal 11"), running()),
            false,
            "ended+ exited 139/11: the job ended by signal 11",
        ),
        (
            worker(json!({}), reported(137, Some(9), "out_of_memory", "killed for using too much memory"), running()),
            false,
            "ended+ out_of_memory 137/9: killed for using too much memory",
        ),
        (
            worker(
                json!({}),
                reported(143, Some(15), "deadline", "the job ran longer than 60s and was stopped"),
                running(),
            ),
            false,
            "ended+ deadline 143/15: the job ran longer than 60s and was stopped",
        ),
        (
            worker(json!({}), reported(127, None, "image", "program `x` not found"), running()),
            false,
            "ended+ image 127: program `x` not found",
        ),
        (
            worker(json!({}), reported(143, Some(15), "stopped", "the job was told to stop"), running()),
            false,
            "ended+ exited 143/15: stopped while it ran, its Pod was not: a liveness or startup probe or a postStart hook of the Pod template failed, or somebody ended its container",
        ),
        // With others of its Pod, and the kubelet has not said why yet, or says it with the Pod's end.
        (
            worker(
                json!({"phase": "Running"}),
                reported(143, Some(15), "stopped", "told"),
                terminated(0, "Completed", ""),
            ),
            false,
            "running+",
        ),
        (
            worker(json!({"phase": "Running"}), terminated(137, "Error", ""), terminated(137, "Error", "")),
            false,
            "running+",
        ),
        (
            worker(
                failed("DeadlineExceeded", "…"),
                reported(143, Some(15), "stopped", "told"),
                terminated(0, "Completed", ""),
            ),
            false,
            "ended+. deadline 143/15: the Pod was active longer than it may be (activeDeadlineSeconds), and was stopped",
        ),
        (
            worker(json!({"phase": "Failed"}), terminated(137, "Error", ""), terminated(137, "Error", "")),
            false,
            "ended+. agent_lost 137/9: nobody knows how the job ended: its agent was killed by signal 9 (SIGKILL)",
        ),
        // As containerd leaves it after the machine was switched off.
        (
            worker(json!({"phase": "Failed"}), terminated(255, "Unknown", ""), terminated(255, "Unknown", "")),
            false,
            "ended+. node_lost: node n was restarted, or lost sight of the job; nobody knows how it ended",
        ),
        (
            worker(json!({}), terminated(255, "Error", ""), running()),
            false,
            "ended+ node_lost: node n was restarted, or lost sight of the job; nobody knows how it ended",
        ),
        (
            worker(
                json!({"phase": "Failed"}),
                terminated(-137, "NotFound", "Container was not found and was likely deleted"),
                running(),
            ),
            false,
            "ended+. node_lost: node n was restarted, or lost sight of the job; nobody knows how it ended",
        ),
        (
            worker(
                json!({"phase": "Pending"}),
                json!({"waiting": {"reason": "PodInitializing"}}),
                terminated(255, "Unknown", ""),
            ),
            false,
            "waiting infrastructure: the agent (container `otto`) was lost in a restart of its node before the job began",
        ),
        // Restarted in good order, but nobody told the kubelet.
        (
            worker(
                json!({"phase": "Failed"}),
                terminated(
                    255,
                    "Unknown",
                    r#"{"exit_code":143,"signal":15,"class":"stopped","message":"told","ended_at_ms":1}"#,
                ),
                terminated(255, "Unknown", ""),
            ),
            false,
            "ended+. node_lost 143/15: node n was restarted",
        ),
        (
            worker(json!({}), reported(255, None, "exited", "the job ended with exit code 255"), running()),
            false,
            "ended+ exited 255: the job ended with exit code 255",
        ),
        (worker(json!({}), reported(1, None, "out_of_tea", "no tea"), running()), false, "ended+ exited 1: no tea"),
        (
            worker(failed("DeadlineExceeded", "…"), reported(1, None, "agent_lost", "nobody knows"), running()),
            false,
            "ended+. deadline 1: the Pod was active longer than it may be (activeDeadlineSeconds), and was stopped",
        ),
        (
            worker(json!({}), terminated(1, "Error", r#"{"exit_code":1,"class":"exi"#), running()),
            false,
            r#"ended+ exited 1: the job ended with exit code 1: {"exit_code":1,"class":"exi"#,
        ),
        (
            worker(
                json!({}),
                terminated(0, "OOMKilled", r#"{"exit_code":0,"class":"success","ended_at_ms":1}"#),
                running(),
            ),
            false,
            "ended+ success 0: ",
        ),
        (
            worker(
                json!({}),
                terminated(2, "OOMKilled", r#"{"exit_code":2,"class":"exited","ended_at_ms":1}"#),
                running(),
            ),
            false,
            "ended+ out_of_memory 2: killed for using more memory than there was for it",
        ),
        // Waiting.
        (
            worker(
                json!({"phase": "Pending"}),
                waits(
                    "ErrImagePull",
                    r#"failed to pull and unpack image "docker.io/acme/x:1": failed to resolve reference "docker.io/acme/x:1": pull access denied, repository does not exist or may require authorization: server message: insufficient_scope: authorization failed"#,
                ),
                running(),
            ),
            false,
            "waiting image: image acme/x:1 cannot be pulled: pull access denied, repository does not exist or may require authorization: server message: insufficient_scope: authorization failed",
        ),
        (
            worker(
                json!({"phase": "Pending"}),
                waits(
                    "ErrImagePull",
                    r#"rpc error: code = NotFound desc = failed to pull and unpack image "docker.io/acme/x:1": failed to resolve reference "docker.io/acme/x:1": docker.io/acme/x:1: not found"#,
                ),
                running(),
            ),
            false,
            "waiting image: image acme/x:1 cannot be pulled: not found in the registry docker.io",
        ),
        (
            worker(
                json!({"phase": "Pending"}),
                waits("ImagePullBackOff", r#"Back-off pulling image "acme/x:1""#),
                running(),
            ),
            false,
            "waiting infrastructure: image acme/x:1 cannot be pulled",
        ),
        (
            worker(json!({"phase": "Pending"}), waits("SignatureValidationFailed", "no signature"), running()),
            false,
            "waiting !image: image acme/x:1 is not signed as it must be: no signature",
        ),
        (
            worker(
                json!({"phase": "Pending"}),
                waits(
                    "CreateContainerConfigError",
                    "failed to prepare subPath for volumeMount \"v\" of container \"job\"",
                ),
                running(),
            ),
            false,
            r#"waiting volume: the job's container cannot be configured: failed to prepare subPath for volumeMount "v" of container "job""#,
        ),
        (
            worker(json!({"phase": "Pending"}), waits("CreateContainerError", "context deadline exceeded"), running()),
            false,
            "waiting infrastructure: the job's container cannot be started: context deadline exceeded",
        ),
        (
            worker(
                json!({"phase": "Pending"}),
                json!({"waiting": {"reason": "PodInitializing"}}),
                waits("PostStartHookError", ""),
            ),
            false,
            "waiting infrastructure: the agent's container `otto` failed to set up (postStart hook)",
        ),
        (
            worker(json!({"phase": "Pending"}), json!({"waiting": {"reason": "Tired"}}), running()),
            false,
            "waiting infrastructure: the job's container cannot start (Tired)",
        ),
        (worker(json!({"phase": "Pending"}), json!({}), running()), false, "created"),
        // Hardly anything.
        (json!({}), false, "waiting ~unschedulable: not scheduled: no scheduler has looked at it"),
        (json!({}), true, "ended. stopped: its Pod was deleted before the job began"),
        (json!({"metadata": {"deletionTimestamp": "2026-01-02T03:04:05Z"}}), false, "created"),
    ];
    for (pod, deleted, expected) in cases {
        assert_eq!(told(&classify(&made(pod.clone()), deleted)), expected, "{pod:#}");
    }
}

/// Texts as containerd, CRI-O and the kubelet write them.
#[test]
fn a_registry_that_is_away_is_not_the_images_fault() {
    let pull = |reason: &str, message: &str| {
        let job = json!({"waiting": {"reason": reason, "message": message}});
        let life = classify(&made(worker(json!({"phase": "Pending"}), job, running())), false);
        let State::Created { waiting: Some(waiting) } = life.state else { panic!("{message}") };
        waiting.outcome.class
    };
    let containerd = |why: &str| {
        let image = "docker.io/acme/x:1";
        format!(r#"failed to pull and unpack image "{image}": failed to resolve reference "{image}": {why}"#)
    };
    let crio = |why: &str| format!(r#"initializing source docker://acme/x:1: {why}"#);
    let manifest = "https://registry-1.docker.io/v2/acme/x/manifests/1";
    let away = [
        containerd(&format!("unexpected status from HEAD request to {manifest}: 503 Service Unavailable")),
        containerd(&format!("unexpected status from HEAD request to {manifest}: 500 Internal Server Error")),
        containerd("pulling from host docker.io failed with status code [manifests 404]: 502 Bad Gateway"),
        containerd(
            "failed to authorize: failed to fetch anonymous token: unexpected status from GET request to https://auth.docker.io/token?scope=x: 504 Gateway Timeout",
        ),
        format!(
            r#"failed to pull and unpack image "docker.io/acme/x:1": failed to copy: httpReadSeeker: failed open: unexpected status code {manifest}: 429 Too Many Requests - Server message: toomanyrequests: You have reached your pull rate limit."#
        ),
        containerd(&format!(
            r#"failed to do request: Head "{manifest}": dial tcp 10.0.0.7:443: connect: connection refused"#
        )),
        containerd(&format!(
            r#"failed to do request: Head "{manifest}": dial tcp: lookup registry-1.docker.io on 10.0.0.10:53: server misbehaving"#
        )),
        containerd(&format!(r#"failed to do request: Head "{manifest}": net/http: TLS handshake timeout"#)),
        containerd(&format!(
            r#"failed to do request: Head "{manifest}": tls: failed to verify certificate: x509: certificate has expired or is not yet valid"#
        )),
        containerd(&format!(r#"failed to do request: Head "{manifest}": EOF"#)),
        crio(r#"pinging container registry quay.io: Get "https://quay.io/v2/": dial tcp 10.0.0.7:443: i/o timeout"#),
        crio("reading manifest 1 in quay.io/acme/x: received unexpected HTTP status: 502 Bad Gateway"),
        crio("pinging container registry quay.io: invalid status code from registry 503 (Service Unavailable)"),
        crio(r#"reading manifest 1 in quay.io/acme/x: StatusCode: 500, "<html>""#),
        crio("reading manifest 1 in docker.io/acme/x: toomanyrequests: You have reached your pull rate limit."),
        crio(
            r#"(Mirrors also failed: [mirror.example/acme/x:1: pinging container registry mirror.example: Get "https://mirror.example/v2/": dial tcp: lookup mirror.example: no such host]): docker.io/acme/x:1: reading manifest 1 in docker.io/acme/x: requested access to the resource is denied"#,
        ),
        r#"image pull failed for acme/x:1 because the registry is unavailable: pinging container registry"#.to_owned(),
        "pull QPS exceeded".to_owned(),
    ];
    let images = [
        containerd("docker.io/acme/timeout-500:503: not found"),
        containerd("docker.io/acme/status:503: not found"),
        containerd(&format!("unexpected status from HEAD request to {manifest}: 403 Forbidden")),
        containerd("pulling from host docker.io failed with status code [manifests 503]: 401 Unauthorized"),
        containerd(
            "pull access denied, repository does not exist or may require authorization: server message: insufficient_scope: authorization failed",
        ),
        r#"failed to pull and unpack image "docker.io/acme/x:1": no match for platform in manifest: not found"#
            .to_owned(),
        crio("reading manifest 1 in quay.io/acme/x: manifest unknown"),
        crio("reading manifest 1 in quay.io/acme/x: unauthorized: access to the requested resource is not authorized"),
        r#"choosing image instance: no image found in image index for architecture "arm64", variant "v8", OS "linux""#
            .to_owned(),
        "something else".to_owned(),
    ];
    for (why, class) in
        away.iter().map(|why| (why, Class::Infrastructure)).chain(images.iter().map(|why| (why, Class::Image)))
    {
        assert_eq!(pull("ErrImagePull", why), class, "{why}");
        let later = format!(r#"Back-off pulling image "acme/x:1": ErrImagePull: {why}"#);
        assert_eq!(pull("ImagePullBackOff", &later), class, "{later}");
    }
    assert_eq!(pull("RegistryUnavailable", ""), Class::Infrastructure);
}

#[test]
fn a_pause_that_says_nothing_does_not_change_why_an_image_is_not_pulled() {
    let look = |reason: &str, message: &str| {
        let job = json!({"waiting": {"reason": reason, "message": message}});
        classify(&made(worker(json!({"phase": "Pending"}), job, running())), false)
    };
    let pause = || look("ImagePullBackOff", r#"Back-off pulling image "acme/x:1""#);
    let missing = "waiting image: image acme/x:1 cannot be pulled: manifest unknown";
    let first = look("ErrImagePull", "manifest unknown");
    let paused = pause().after(&first);
    assert_eq!(told(&paused), missing);
    assert_eq!(told(&pause().after(&paused)), missing);
    let away = look("ErrImagePull", "dial tcp: i/o timeout").after(&paused);
    assert_eq!(told(&away), "waiting infrastructure: image acme/x:1 cannot be pulled: dial tcp: i/o timeout");
    assert_eq!(told(&pause().after(&away)), told(&away));
    let other = look("CreateContainerConfigError", "secret \"x\" not found");
    assert_eq!(other.clone().after(&away), other);
    assert_eq!(told(&pause().after(&other)), "waiting infrastructure: image acme/x:1 cannot be pulled");
}

#[test]
fn a_node_that_cannot_be_reached_is_told() {
    let trouble = |pod: SeenPod| classify(&pod, false).trouble.map(|trouble| (trouble.outcome.message, trouble.lasts));
    let ready = |status: &str, reason: Value, containers: &str| {
        let conditions = json!([
            {"type": "Ready", "status": status, "reason": reason},
            {"type": "ContainersReady", "status": containers},
        ]);
        worker(json!({"phase": "Running", "conditions": conditions}), running(), running())
    };
    let away = "node n is not ready or cannot be reached; the job may run on there, and counts as running";
    let rest = "the worker counts as running until the Pod is gone: bring the node back or, if it is off for good, delete the Node or taint it with node.kubernetes.io/out-of-service";
    assert_eq!(trouble(made(ready("False", Value::Null, "True"))), Some((away.to_owned(), 0)));
    // By the kubelet: it is there.
    assert_eq!(trouble(made(ready("False", json!("ReadinessGatesNotReady"), "True"))), None);
    assert_eq!(trouble(made(ready("False", Value::Null, "False"))), None);
    assert_eq!(trouble(made(ready("True", Value::Null, "True"))), None);
    let mut gone = ready("False", Value::Null, "True");
    gone["metadata"] = json!({"deletionTimestamp": "2026-01-02T03:04:05Z", "deletionGracePeriodSeconds": 90});
    let stays =
        format!("node n is not ready or cannot be reached, and so its Pod, which is to go, is still there; {rest}");
    assert_eq!(trouble(made(gone)), Some((stays, 0)));
    // Nobody can know before its grace is over.
    let stays = format!(
        "its Pod is to go, its grace period is over, and it is still there: node node-2 pulls an image (the Pod goes when that is done) or cannot be reached; {rest}"
    );
    assert_eq!(trouble(recorded("node-unreachable")), Some((stays, 33_000)));
    for (name, deleted, _) in RECORDED.iter().filter(|(name, ..)| !["node-unreachable", "evicting"].contains(name)) {
        let told = classify(&recorded(name), *deleted).trouble;
        assert!(told.is_none() || *name == "image-missing-deleting", "{name}: {told:?}");
    }
}

#[test]
fn times_are_the_jobs() {
    let pod = worker(json!({"phase": "Running"}), reported(0, None, "success", ""), running());
    let life = classify(&made(pod), false);
    assert_eq!(life.started_at, Some(1_767_323_045_000));
    assert!(matches!(life.state, State::Ended { at: 1_767_323_055_200, .. }), "{life:?}");
    // By the cluster alone: when the deletion was asked for, not when its grace is over.
    let pod = json!({"metadata": {"deletionTimestamp": "2026-01-02T03:04:35Z", "deletionGracePeriodSeconds": 30}});
    let life = classify(&made(pod), true);
    assert!(matches!(life.state, State::Ended { at: 1_767_323_045_000, .. }), "{life:?}");
}

/// Whatever a status is made of, it is read, and one that is over has ended.
fn anything() -> impl Strategy<Value = Value> {
    let reason = prop::sample::select(vec![
        "",
        "Error",
        "OOMKilled",
        "StartError",
        "ContainerStatusUnknown",
        "ErrImagePull",
        "CreateContainerConfigError",
        "Evicted",
        "OutOfpods",
        "DeadlineExceeded",
        "PodInitializing",
        "Completed",
        "x",
    ]);
    let message = prop_oneof![
        Just(Value::Null),
        "\\PC{0,40}".prop_map(Value::from),
        Just(json!(r#"{"exit_code":-1,"signal":-9,"class":"stopped","ended_at_ms":-5}"#)),
        Just(json!(": \": ErrImagePull: rpc error: code = ")),
    ];
    let time = prop::sample::select(vec![Value::Null, json!("1970-01-01T00:00:00Z"), json!("2200-12-31T23:59:59Z")]);
    let state = (reason.clone(), message.clone(), time.clone(), any::<i32>(), 0..5).prop_map(
        |(reason, message, time, code, kind)| match kind {
            0 => json!({"waiting": {"reason": reason, "message": message}}),
            1 => json!({"running": {"startedAt": time}}),
            2 => json!({"terminated": {"exitCode": code, "signal": code, "reason": reason, "message": message, "startedAt": time, "finishedAt": time}}),
            3 => json!({}),
            _ => Value::Null,
        },
    );
    let name = prop::sample::select(vec!["job", "otto", "x"]);
    let container = (name, state.clone(), state)
        .prop_map(|(name, state, last)| json!({"name": name, "image": "i", "state": state, "lastState": last}));
    let condition = prop::sample::select(vec!["PodScheduled", "DisruptionTarget", "PodReadyToStartContainers"]);
    let condition = (condition, any::<bool>(), reason.clone(), time.clone()).prop_map(|(kind, holds, reason, time)| {
        json!({"type": kind, "status": if holds { "True" } else { "False" }, "reason": reason, "lastTransitionTime": time})
    });
    let phase = prop::sample::select(vec!["", "Pending", "Running", "Succeeded", "Failed", "Unknown", "x"]);
    let lists = (
        prop::collection::vec(container.clone(), 0..4),
        prop::collection::vec(container, 0..2),
        prop::collection::vec(condition, 0..3),
    );
    (phase, reason, message, lists, time, any::<i64>()).prop_map(|(phase, reason, message, lists, time, grace)| {
        json!({
            "metadata": {"deletionTimestamp": time, "deletionGracePeriodSeconds": grace},
            "status": {
                "phase": phase, "reason": reason, "message": message,
                "containerStatuses": lists.0, "initContainerStatuses": lists.1, "conditions": lists.2,
            },
        })
    })
}

proptest! {
    #[test]
    fn every_status_is_read(pod in anything(), deleted in any::<bool>()) {
        let life = classify(&made(pod.clone()), deleted);
        let phase = pod["status"]["phase"].as_str().unwrap_or_default();
        let over = deleted || matches!(phase, "Succeeded" | "Failed");
        prop_assert!(!over || life.drained);
        match life.state {
            State::Ended { outcome, .. } => {
                prop_assert!(outcome.class == Class::Success || !outcome.message.is_empty() || pod.to_string().contains("class"));
            }
            State::Created { waiting } => {
                prop_assert!(!over);
                let class = waiting.map(|waiting| waiting.outcome.class);
                prop_assert!(!matches!(class, Some(Class::Success | Class::Stopped)));
            }
            State::Running => prop_assert!(!over),
            State::Gone => prop_assert!(false, "nobody said so"),
        }
    }
}

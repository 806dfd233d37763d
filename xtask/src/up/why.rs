//! Why Pods do not run, for people.

use serde_json::Value;

use super::cluster::Cluster;

/// Lines of a container's log that are shown.
const LAST_LINES: &str = "--tail=15";

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn is_ready(pod: &Value) -> bool {
    list(&pod["status"]["conditions"])
        .iter()
        .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

/// What keeps a Pod from running, in a few words; `None`: nothing, or nothing known yet.
pub(super) fn short(pod: &Value) -> Option<String> {
    let name = text(&pod["metadata"]["name"]);
    for container in list(&pod["status"]["containerStatuses"]) {
        let waiting = &container["state"]["waiting"];
        let reason = text(&waiting["reason"]);
        if reason == "CrashLoopBackOff" {
            // Its message only repeats names.
            return Some(format!("{name}: ends again and again"));
        }
        if !matches!(reason, "" | "ContainerCreating" | "PodInitializing") {
            return Some(format!("{name}: {reason} {}", text(&waiting["message"])).trim_end().to_owned());
        }
    }
    let unscheduled = list(&pod["status"]["conditions"]).iter().find(|condition| {
        condition["type"] == "PodScheduled" && condition["status"] == "False" && condition["reason"] == "Unschedulable"
    })?;
    Some(format!("{name}: {}", text(&unscheduled["message"])))
}

/// What the cluster warns of Pods that are not ready.
pub(super) fn warnings(cluster: &Cluster, pods: &[&Value]) -> Vec<String> {
    let names = pods.iter().filter(|pod| !is_ready(pod)).map(|pod| text(&pod["metadata"]["name"]));
    names.flat_map(|name| events(cluster, name).into_iter().map(move |event| format!("{name}: {event}"))).collect()
}

/// Everything worth knowing of those Pods that are not ready.
pub(super) fn of_pods(cluster: &Cluster, pods: &[&Value]) -> String {
    let mut told = Vec::new();
    for pod in pods.iter().filter(|pod| !is_ready(pod)) {
        let name = text(&pod["metadata"]["name"]);
        told.push(format!("Pod {name} ({})", text(&pod["status"]["phase"])));
        for condition in list(&pod["status"]["conditions"]).iter().filter(|condition| condition["status"] != "True") {
            let (kind, reason) = (text(&condition["type"]), text(&condition["reason"]));
            told.push(format!("  {kind}: {reason} {}", text(&condition["message"])).trim_end().to_owned());
        }
        for container in list(&pod["status"]["containerStatuses"]) {
            let container_name = text(&container["name"]);
            if let Some(waiting) = short(pod) {
                told.push(format!("  {waiting}"));
            }
            let last = &container["lastState"]["terminated"];
            if let Some(code) = last["exitCode"].as_i64() {
                told.push(format!("  {container_name} ended with {code} ({})", text(&last["reason"])));
            }
            if container["started"] == true || !last.is_null() {
                told.extend(last_words(cluster, name, container_name).into_iter().map(|line| format!("  | {line}")));
            }
        }
        told.extend(events(cluster, name).into_iter().map(|line| format!("  {line}")));
    }
    told.join("\n")
}

fn last_words(cluster: &Cluster, pod: &str, container: &str) -> Vec<String> {
    let log = |previous: &[&str]| {
        let mut log = cluster.kubectl();
        log.args(["logs", "--namespace=ottoscaler", LAST_LINES, pod, "--container", container]).args(previous);
        log.output().ok().filter(|output| output.status.success()).map(|output| output.stdout).unwrap_or_default()
    };
    let mut bytes = log(&[]);
    if bytes.is_empty() {
        bytes = log(&["--previous"]);
    }
    String::from_utf8_lossy(&bytes).lines().map(str::to_owned).collect()
}

fn events(cluster: &Cluster, pod: &str) -> Vec<String> {
    let selector = format!("--field-selector=involvedObject.name={pod},type=Warning");
    let Ok(found) = cluster.get(&["events", "--namespace=ottoscaler", &selector]) else { return Vec::new() };
    list(&found["items"])
        .iter()
        .map(|event| format!("{}: {}", text(&event["reason"]), text(&event["message"])))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_few_words() {
        let pod = |status: Value| json!({"metadata": {"name": "p"}, "status": status});
        let waiting =
            |reason: &str| json!({"containerStatuses": [{"state": {"waiting": {"reason": reason, "message": "m"}}}]});
        assert_eq!(short(&pod(waiting("ErrImagePull"))).unwrap(), "p: ErrImagePull m");
        assert_eq!(short(&pod(waiting("ContainerCreating"))), None);
        let unscheduled = json!({"conditions": [
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes"}]});
        assert_eq!(short(&pod(unscheduled)).unwrap(), "p: 0/1 nodes");
        assert_eq!(short(&pod(json!({}))), None);
    }
}

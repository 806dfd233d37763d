//! What in a Pod is the scaler's own, and why: a template that says something about it is refused.

use serde_json::{Map, Value};

use crate::driver::kubernetes::merge::{self, Kind, kind_of};
use crate::driver::kubernetes::names::{
    AGENT_CONTAINER, JOB_CONTAINER, MANAGED_BY_LABEL, NAME_LABEL, OUR_PREFIX, SHARED_PATH, SHARED_VOLUME, TOKEN_PATH,
    TOKEN_VOLUME,
};

/// Fields of the spec.
const SPEC: [(&str, &str); 5] = [
    (
        "restartPolicy",
        "a worker runs at most once (always Never); `max_attempts` of the event says how often it is tried",
    ),
    ("activeDeadlineSeconds", "it follows from `timeout_seconds` of the event, or --max-lifetime"),
    ("terminationGracePeriodSeconds", "it follows from --grace"),
    ("enableServiceLinks", "variables of services would change settings of the agent (always false)"),
    ("ephemeralContainers", "no Pod can be created with them"),
];

/// Fields of both containers of ours.
const BOTH: [(&str, &str); 6] = [
    ("command", "it starts the agent"),
    ("args", "they are the agent's"),
    ("restartPolicy", "a container runs at most once"),
    ("restartPolicyRules", "a container runs at most once"),
    ("terminationMessagePath", "the scaler reads there how the job ended"),
    ("terminationMessagePolicy", "the scaler reads there how the job ended"),
];

/// Fields of the container `job` alone.
const JOB: [(&str, &str); 1] = [("image", "it is the event's, or --worker-image")];

/// Fields of the container `otto` alone.
const AGENT: [(&str, &str); 5] = [
    ("image", "it is --agent-image"),
    ("lifecycle", "it holds back the job until the agent is there"),
    ("livenessProbe", "it would end the agent before the log is complete"),
    ("readinessProbe", "a worker serves nothing"),
    ("startupProbe", "it would end the agent before the log is complete"),
];

/// Variables of the containers of ours, besides `OTTO_JOB_…`.
const VARIABLES: [&str; 2] = ["OTTO_NODE_NAME", "TRACEPARENT"];

/// Looks for what is the scaler's own in a spec that has passed [`merge::check`].
///
/// # Errors
/// The path and why.
pub(super) fn check_spec(spec: &Map<String, Value>, path: &str) -> Result<(), String> {
    check_fields(spec, path, &SPEC)?;
    for (name, object, at) in elements(spec, "volumes", path) {
        if name == SHARED_VOLUME || name == TOKEN_VOLUME {
            return Err(own(&at, "a volume of this name joins the agent and the job"));
        }
        check_quantity(
            object.get("emptyDir").and_then(|dir| dir.get("sizeLimit")),
            &format!("{at}.emptyDir.sizeLimit"),
        )?;
    }
    if let Some(Value::Object(overhead)) = spec.get("overhead") {
        check_quantities(overhead, &format!("{path}.overhead"))?;
    }
    for field in ["containers", "initContainers"] {
        for (name, container, at) in elements(spec, field, path) {
            check_container(&name, container, &at, field == "initContainers")?;
        }
    }
    Ok(())
}

/// Looks at the name of a label or annotation.
///
/// # Errors
/// The path and why.
pub(super) fn check_name(name: &str, path: &str) -> Result<(), String> {
    if name.starts_with(OUR_PREFIX) || name == NAME_LABEL.0 || name == MANAGED_BY_LABEL.0 {
        return Err(own(path, "the scaler knows its workers by it"));
    }
    Ok(())
}

fn check_container(name: &str, container: &Map<String, Value>, path: &str, before: bool) -> Result<(), String> {
    if let Some(Value::Object(resources)) = container.get("resources") {
        for field in ["requests", "limits"] {
            if let Some(Value::Object(amounts)) = resources.get(field) {
                check_quantities(amounts, &format!("{path}.resources.{field}"))?;
            }
        }
    }
    let ours: &[(&str, &str)] = match name {
        JOB_CONTAINER => &JOB,
        AGENT_CONTAINER => &AGENT,
        _ => return Ok(()),
    };
    if before {
        return Err(own(path, "a container of this name is in every worker; call yours otherwise"));
    }
    if merge::directive(container) == Some("delete") {
        return Err(own(path, "every worker has it"));
    }
    check_fields(container, path, &BOTH)?;
    check_fields(container, path, ours)?;
    for (name, variable, at) in elements(container, "env", path) {
        if name == "OTTO_AGENT_ENV" && !variable.get("value").is_some_and(Value::is_string) {
            return Err(format!("`{at}` has no value; accepted: names of variables, with commas between them"));
        }
        if name.starts_with("OTTO_JOB_") || VARIABLES.contains(&name.as_str()) {
            return Err(own(&at, "the agent gets it from the scaler"));
        }
    }
    for (mount, _, at) in elements(container, "volumeMounts", path) {
        let below = |ours: &str| mount == ours || mount.strip_prefix(ours).is_some_and(|rest| rest.starts_with('/'));
        let mount = mount.trim_end_matches('/');
        if mount.is_empty() || below(SHARED_PATH) || below(TOKEN_PATH) {
            return Err(own(&at, "the agent's files are there"));
        }
    }
    Ok(())
}

fn check_fields(object: &Map<String, Value>, path: &str, ours: &[(&str, &str)]) -> Result<(), String> {
    let found = ours.iter().find(|(field, _)| object.contains_key(*field));
    found.map_or(Ok(()), |(field, why)| Err(own(&format!("{path}.{field}"), why)))
}

fn own(path: &str, why: &str) -> String {
    format!("`{path}` is the scaler's own: {why}")
}

/// Elements of a list with keys: name, fields, path.
fn elements<'a>(
    object: &'a Map<String, Value>,
    field: &'a str,
    path: &'a str,
) -> impl Iterator<Item = (String, &'a Map<String, Value>, String)> {
    let kind = if matches!(field, "env" | "volumeMounts") { Kind::Container } else { Kind::PodSpec };
    let list = merge::keyed(kind, field);
    let elements = object.get(field).and_then(Value::as_array).into_iter().flatten();
    elements.filter_map(move |element| {
        let name = list?.name(element)?;
        let at = format!("{path}.{field}[{name}]");
        Some((name, element.as_object()?, at))
    })
}

fn check_quantities(amounts: &Map<String, Value>, path: &str) -> Result<(), String> {
    amounts.iter().try_for_each(|(name, amount)| check_quantity(Some(amount), &format!("{path}[{name}]")))
}

/// The API server says of a bad quantity only that there is one somewhere.
/// <https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/>
fn check_quantity(amount: Option<&Value>, path: &str) -> Result<(), String> {
    let text = match amount {
        None | Some(Value::Null | Value::Number(_)) => return Ok(()),
        Some(Value::String(text)) => text,
        Some(other) => return Err(format!("`{path}` is {}; accepted: an amount, such as 500m or 2Gi", kind_of(other))),
    };
    let number = text.strip_prefix(['+', '-']).unwrap_or(text);
    let end = number.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(number.len());
    let (number, unit) = number.split_at(end);
    let digits = number.bytes().any(|b| b.is_ascii_digit()) && number.matches('.').count() <= 1;
    let exponent = |unit: &str| {
        let power = unit.strip_prefix(['e', 'E']).map(|power| power.strip_prefix(['+', '-']).unwrap_or(power));
        power.is_some_and(|power| !power.is_empty() && power.bytes().all(|b| b.is_ascii_digit()))
    };
    let units = ["", "n", "u", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    if digits && (units.contains(&unit) || exponent(unit)) {
        return Ok(());
    }
    Err(format!("`{path}` is {text:?}; accepted: an amount, such as 500m, 2 or 1.5Gi"))
}

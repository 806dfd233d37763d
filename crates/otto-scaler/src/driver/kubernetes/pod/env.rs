//! Environment of the job's container, as far as it does not come from an event.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::shape::Common;
use super::write::splice;
use super::{literal, variable};

/// Names of variables that are meant for the agent alone; a template may add to them.
const AGENT_ENV: &str = "OTTO_AGENT_ENV";
/// Variables of the job's container that do not come from its event.
#[derive(Debug, Default)]
pub(super) struct Env {
    /// Each as JSON.
    variables: Vec<(String, Vec<u8>)>,
    /// Names of those which are meant for the agent alone.
    agent: BTreeSet<String>,
    /// What the scaler tells a job by name is used in the job's container: in a variable's value, or in a hook.
    pub(super) named_by_template: bool,
    /// All of it, for events that set none of these.
    pub(super) all: Vec<u8>,
}

impl Env {
    pub(super) fn new(common: &Common, node: &Value, template: Option<Value>, named_by_template: bool) -> Self {
        let named = template.as_ref().map(names).unwrap_or_default();
        let mut env = Self { named_by_template, ..Self::default() };
        let uid = json!({ "name": "OTTO_JOB_LAUNCH_ID", "valueFrom": { "fieldRef": { "fieldPath": "metadata.uid" } } });
        let telemetry = common.telemetry.iter().filter(|(name, _)| !named.contains(*name));
        for (name, value) in telemetry {
            env.agent.insert(name.clone());
            env.push(json!({ "name": name, "value": literal(value) }));
        }
        env.push(node.clone());
        env.push(uid);
        if let Some(Value::Array(variables)) = template {
            for variable in variables {
                if variable.get("name").and_then(Value::as_str) == Some(AGENT_ENV) {
                    let names = variable.get("value").and_then(Value::as_str).unwrap_or_default();
                    env.agent.extend(names.split(',').filter(|name| !name.is_empty()).map(str::to_owned));
                } else {
                    env.push(variable);
                }
            }
        }
        let mut all = vec![b'['];
        env.write_all(&mut all, |_| None);
        env.all = all.split_off(1);
        env
    }

    fn push(&mut self, variable: Value) {
        let name = variable.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
        self.variables.push((name, variable.to_string().into_bytes()));
    }

    /// Adds them to an array, each with the event's value if it has one.
    pub(super) fn write<'e>(&self, json: &mut Vec<u8>, by_event: impl Fn(&str) -> Option<&'e str>) {
        if self.variables.iter().any(|(name, _)| by_event(name).is_some()) {
            return self.write_all(json, by_event);
        }
        splice(json, &self.all);
    }

    fn write_all<'e>(&self, json: &mut Vec<u8>, by_event: impl Fn(&str) -> Option<&'e str>) {
        for (name, written) in &self.variables {
            match by_event(name) {
                Some(value) => variable(json, &[name], value),
                None => splice(json, written),
            }
        }
        // The agent removes these from the job's environment, and takes no others for itself.
        let agent: Vec<&str> = self.agent.iter().map(String::as_str).filter(|name| by_event(name).is_none()).collect();
        variable(json, &[AGENT_ENV], &agent.join(","));
    }

    /// One of them has this name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.variables.iter().any(|(own, _)| own == name)
    }
}

/// Names in a list of variables.
pub(super) fn names(list: &Value) -> BTreeSet<String> {
    let name = |variable: &Value| variable.get("name").and_then(Value::as_str).map(str::to_owned);
    list.as_array().into_iter().flatten().filter_map(name).collect()
}

//! Whether the Pods that will be made are Pods at all: the API server is asked when the scaler starts, by a dry run of one
//! Pod per class. It knows the fields of its version, and what the cluster's policies admit.

use anyhow::anyhow;
use kube::core::Status;
use serde_json::Value;

use super::{PodMaker, altered};
use crate::driver::kubernetes::errors::missing_account;
use crate::driver::kubernetes::merge::{self, Kind};
use crate::driver::kubernetes::seen::SeenMetadata;
use crate::driver::{Launch, WorkerKey};
use crate::task::Spec;

/// Task of the Pods that are only tried.
const TASK: &str = "template-check";

/// Stands for the owner, which a dry run does not look for.
const NOBODY: &str = "00000000-0000-0000-0000-000000000000";

/// A Pod for a dry run: `dryRun=All&fieldValidation=Strict`.
#[derive(Debug)]
pub(in crate::driver::kubernetes) struct Trial {
    /// `None`: of events that name no resource class.
    class: Option<String>,
    key: WorkerKey,
    /// JSON.
    pub(in crate::driver::kubernetes) pod: Vec<u8>,
}

impl Trial {
    /// A sentence about it that says which resource class it is of, if it is of one.
    pub(in crate::driver::kubernetes) fn named(&self, sentence: String) -> String {
        match &self.class {
            Some(class) => format!("class `{class}`: {sentence}"),
            None => sentence,
        }
    }
}

impl PodMaker {
    /// One Pod for each resource class, and one for events that name none.
    ///
    /// # Errors
    /// If one cannot be made at all.
    pub(in crate::driver::kubernetes) fn trials(&self) -> anyhow::Result<Vec<Trial>> {
        let classes = std::iter::once(None).chain(self.template.classes().map(Some));
        let make = |class: Option<&str>| {
            let spec = Spec {
                image: self.image.clone(),
                command: vec!["true".to_owned()],
                resource_class: class.unwrap_or_default().to_owned(),
                ..Spec::default()
            };
            let key = WorkerKey { task_id: TASK.to_owned(), index: 0, attempt: 1 };
            let pod = self.make(&Launch { key: key.clone(), spec: spec.into(), traceparent: None }, NOBODY);
            let pod = pod.map_err(|outcome| anyhow!("{}: {}", self.called(class), outcome.message))?;
            Ok(Trial { class: class.map(str::to_owned), key, pod })
        };
        classes.map(make).collect()
    }

    /// What the API server's refusal says about the template: class, field, and where in the file that is. `None`: it says
    /// nothing about it (a permission is missing, a quota is used up, the server is busy).
    pub(in crate::driver::kubernetes) fn refusal(&self, trial: &Trial, status: &Status) -> Option<anyhow::Error> {
        let message = status.message.as_str();
        match status.code {
            400 | 422 => {}
            // Admission says it with this code, too; what the cluster's authorizer says is about us.
            403 if !message.contains(" cannot create resource ") && !message.contains("exceeded quota") => {}
            _ => return None,
        }
        let pod: Value = serde_json::from_slice(&trial.pod).unwrap_or_default();
        let class = trial.class.as_deref();
        let fields = fields_of(status);
        let mut places: Vec<String> = Vec::new();
        for (field, problem) in fields {
            let (steps, shown) = by_name(&pod, &field);
            let origin = match self.template.origin(class, &steps) {
                Some(path) if path == shown => String::new(),
                Some(path) => format!(" (in the file: `{path}`)"),
                None if steps.len() > 1 => " (not from the file)".to_owned(),
                None => String::new(),
            };
            places.push(format!("`{shown}`{origin}: {problem}"));
        }
        let what = if places.is_empty() { message.to_owned() } else { places.join("; ") };
        let remedy = match status.code {
            403 if missing_account(status).is_some() => "",
            403 => ". What the cluster's policy demands of a Pod can be given in the template",
            _ => "",
        };
        Some(anyhow!("{}: the cluster does not take its Pods: {what}{remedy}", self.called(class)))
    }

    /// What is wrong with the Pod that the API server would make of one that it takes.
    pub(in crate::driver::kubernetes) fn objection(&self, trial: &Trial, made: &SeenMetadata) -> Option<anyhow::Error> {
        let what = altered(&trial.key, made)?;
        Some(anyhow!("{}: {what}", self.called(trial.class.as_deref())))
    }

    fn called(&self, class: Option<&str>) -> String {
        let template = self.template.shown();
        match class {
            Some(class) => format!("{template}, class `{class}`"),
            None => template,
        }
    }
}

/// The fields that a refusal names, and what is wrong with each.
fn fields_of(status: &Status) -> Vec<(String, String)> {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    let named: Vec<_> = causes
        .filter(|cause| !cause.field.is_empty())
        .map(|cause| (cause.field.clone(), cause.message.clone()))
        .collect();
    if !named.is_empty() {
        return named;
    }
    // strict decoding error: unknown field "spec.a", duplicate field "spec.b"
    let strict = ["unknown field", "duplicate field"].into_iter().flat_map(|kind| {
        let start = format!("{kind} \"");
        let quoted: Vec<_> = status.message.split(&start).skip(1).filter_map(|rest| rest.split('"').next()).collect();
        quoted.into_iter().map(move |field| (field.to_owned(), kind.to_owned()))
    });
    let strict: Vec<_> = strict.collect();
    if !strict.is_empty() {
        return strict;
    }
    // json: cannot unmarshal string into Go struct field PodSpec.spec.hostNetwork of type bool
    let Some((before, after)) = status.message.split_once("into Go struct field ") else { return Vec::new() };
    let Some((field, wanted)) = after.split_once(" of type ") else { return Vec::new() };
    let given = before.rsplit("cannot unmarshal ").next().unwrap_or_default().trim();
    let field = field.split_once('.').map_or(field, |(_, field)| field);
    vec![(field.to_owned(), format!("it is of type {given}; accepted: {wanted}"))]
}

/// The steps of a path such as `spec.containers[1].resources.limits[cpu]`, and the path with the names of elements where a
/// list has any: `spec.containers[job].resources.limits[cpu]`.
fn by_name(pod: &Value, path: &str) -> (Vec<String>, String) {
    let mut steps: Vec<String> = Vec::new();
    let mut shown = String::new();
    let (mut at, mut kind, mut list) = (pod, Kind::Other, None);
    for (step, bracket) in split(path) {
        let mut name = step.to_owned();
        if let Value::Array(elements) = at {
            let element = step.parse().ok().and_then(|index: usize| elements.get(index)).unwrap_or(&Value::Null);
            let keyed: Option<merge::Keyed> = list;
            name = keyed.and_then(|list| list.name(element)).unwrap_or(name);
            kind = keyed.map_or(Kind::Other, |list| list.elements);
            at = element;
        } else {
            list = merge::keyed(kind, step);
            kind = if step == "spec" && steps.is_empty() { Kind::PodSpec } else { Kind::Other };
            at = at.get(step).unwrap_or(&Value::Null);
        }
        match (bracket, shown.is_empty()) {
            (true, _) => shown.push_str(&format!("[{name}]")),
            (false, true) => shown.push_str(&name),
            (false, false) => shown.push_str(&format!(".{name}")),
        }
        steps.push(name);
    }
    (steps, shown)
}

/// Steps of a path, and whether each was in brackets: what is in there may hold dots.
fn split(path: &str) -> impl Iterator<Item = (&str, bool)> {
    let mut rest = path;
    std::iter::from_fn(move || {
        rest = rest.strip_prefix('.').unwrap_or(rest);
        if rest.is_empty() {
            return None;
        }
        if let Some(inner) = rest.strip_prefix('[') {
            let (step, after) = inner.split_once(']').unwrap_or((inner, ""));
            rest = after;
            return Some((step, true));
        }
        let end = rest.find(['.', '[']).unwrap_or(rest.len());
        let (step, after) = rest.split_at(end);
        rest = after;
        Some((step, false))
    })
}

#[cfg(test)]
mod tests;

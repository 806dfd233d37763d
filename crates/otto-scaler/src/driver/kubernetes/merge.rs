//! Kubernetes' strategic merge: how what an operator wrote is laid over what stands there.
//!
//! Objects are merged field by field; `null` removes a field; lists replace each other, except those whose elements the API
//! names by keys (`patchMergeKey` and `x-kubernetes-list-map-keys` of core/v1): these are merged element by element, new
//! ones at the end. `$patch: replace` in an object takes it as it is, `$patch: delete` empties it; in an element of a list
//! with keys, `delete` removes the element with that key, and `replace` (alone in its element) the whole list.
//! <https://github.com/kubernetes/community/blob/master/contributors/devel/sig-api-machinery/strategic-merge-patch.md>
//!
//! Two things are as `kubectl apply` does them: a volume (and a resource claim) takes the source of the upper layer and
//! loses the one it had (`retainKeys`), and so does an environment variable.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

/// The word that says how an object or list is merged.
pub(super) const DIRECTIVE: &str = "$patch";

/// What an object is, as far as lists in it have keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    PodSpec,
    Container,
    /// Exactly one of its fields besides the key says what it is: the upper layer's.
    Union,
    Other,
}

/// A list whose elements are merged by keys.
#[derive(Clone, Copy, Debug)]
pub(super) struct Keyed {
    keys: &'static [&'static str],
    pub(super) elements: Kind,
}

/// core/v1 of Kubernetes 1.34. Lists that are not named here replace each other: tolerations, readinessGates, command, args,
/// envFrom, capabilities, projected sources, everything in affinity and dnsConfig.
pub(super) fn keyed(kind: Kind, field: &str) -> Option<Keyed> {
    let (keys, elements): (&'static [&'static str], Kind) = match (kind, field) {
        (Kind::PodSpec, "containers" | "initContainers" | "ephemeralContainers") => (&["name"], Kind::Container),
        (Kind::PodSpec, "volumes" | "resourceClaims") => (&["name"], Kind::Union),
        (Kind::PodSpec, "imagePullSecrets" | "schedulingGates") => (&["name"], Kind::Other),
        (Kind::PodSpec, "hostAliases") => (&["ip"], Kind::Other),
        (Kind::PodSpec, "topologySpreadConstraints") => (&["topologyKey", "whenUnsatisfiable"], Kind::Other),
        (Kind::Container, "env") => (&["name"], Kind::Union),
        (Kind::Container, "volumeMounts") => (&["mountPath"], Kind::Other),
        (Kind::Container, "volumeDevices") => (&["devicePath"], Kind::Other),
        (Kind::Container, "ports") => (&["containerPort", "protocol"], Kind::Other),
        _ => return None,
    };
    Some(Keyed { keys, elements })
}

impl Keyed {
    /// How an element is called in messages and paths: the values of its keys. `None`: one is missing.
    pub(super) fn name(self, element: &Value) -> Option<String> {
        let part = |key: &&str| match element.get(key) {
            Some(Value::String(text)) => Some(text.clone()),
            Some(Value::Number(number)) => Some(number.to_string()),
            // The API's default.
            None if *key == "protocol" => Some("TCP".to_owned()),
            _ => None,
        };
        let parts: Option<Vec<String>> = self.keys.iter().map(part).collect();
        Some(parts?.join("/"))
    }
}

/// Lays `upper` over `lower`. Both have passed [`check`]; what has not is merged as well as it can be.
pub(super) fn merge(lower: &mut Map<String, Value>, upper: &Map<String, Value>, kind: Kind) {
    match directive(upper) {
        Some("replace") => {
            *lower = settled(upper, kind);
            return;
        }
        Some("delete") => {
            lower.clear();
            return;
        }
        _ => {}
    }
    if kind == Kind::Union && upper.keys().any(|field| field != "name" && !upper[field].is_null()) {
        lower.retain(|field, _| upper.contains_key(field));
    }
    for (field, value) in upper {
        match (value, lower.get_mut(field)) {
            (Value::Null, _) => {
                lower.remove(field);
            }
            (Value::Object(upper), Some(Value::Object(lower))) => merge(lower, upper, Kind::Other),
            (Value::Array(upper), Some(Value::Array(lower))) if keyed(kind, field).is_some() => {
                if let Some(list) = keyed(kind, field) {
                    merge_list(lower, upper, list);
                }
            }
            (_, _) if field == DIRECTIVE => {}
            _ => {
                lower.insert(field.clone(), settled_value(value, kind, field));
            }
        }
    }
}

/// Lays the elements of `upper` over those of `lower`.
pub(super) fn merge_list(lower: &mut Vec<Value>, upper: &[Value], list: Keyed) {
    if replaces(upper) {
        lower.clear();
    }
    let marked = |element: &Value| element.as_object().and_then(directive).map(str::to_owned);
    for element in upper.iter().filter(|element| marked(element).as_deref() == Some("delete")) {
        lower.retain(|other| list.name(other) != list.name(element));
    }
    for element in upper.iter().filter(|element| marked(element).is_none()) {
        let same = lower.iter_mut().find(|other| list.name(other) == list.name(element));
        match (same.and_then(Value::as_object_mut), element) {
            (Some(lower), Value::Object(upper)) => merge(lower, upper, list.elements),
            (None, Value::Object(upper)) => lower.push(Value::Object(settled(upper, list.elements))),
            (_, other) => lower.push(other.clone()),
        }
    }
}

/// Whether a list stands in the place of the one below it.
pub(super) fn replaces(upper: &[Value]) -> bool {
    upper.iter().any(|element| element.as_object().and_then(directive) == Some("replace"))
}

/// What an object says about its own merging.
pub(super) fn directive(object: &Map<String, Value>) -> Option<&str> {
    object.get(DIRECTIVE).and_then(Value::as_str)
}

/// The object where nothing is below it: without directives, and without what would be removed.
pub(super) fn settled(object: &Map<String, Value>, kind: Kind) -> Map<String, Value> {
    let said = object.iter().filter(|(field, value)| *field != DIRECTIVE && !value.is_null());
    said.map(|(field, value)| (field.clone(), settled_value(value, kind, field))).collect()
}

fn settled_value(value: &Value, kind: Kind, field: &str) -> Value {
    match (value, keyed(kind, field)) {
        (Value::Object(object), _) if directive(object) == Some("delete") => Value::Object(Map::new()),
        (Value::Object(object), _) => Value::Object(settled(object, Kind::Other)),
        (Value::Array(elements), Some(list)) => {
            let mut settled = Vec::with_capacity(elements.len());
            merge_list(&mut settled, elements, list);
            Value::Array(settled)
        }
        _ => value.clone(),
    }
}

/// Whether an object can be merged at all: directives that exist, lists with keys that have them, each once.
///
/// # Errors
/// The path and what is wrong there.
pub(super) fn check(object: &Map<String, Value>, kind: Kind, path: &str) -> Result<(), String> {
    check_directive(object, path)?;
    for (field, value) in object.iter().filter(|(field, _)| *field != DIRECTIVE) {
        let path = format!("{path}.{field}");
        match (value, keyed(kind, field)) {
            (Value::Null, _) => {}
            (Value::Array(elements), Some(list)) => check_list(elements, list, &path)?,
            (_, Some(_)) => return Err(format!("`{path}` is {}; accepted: a list", kind_of(value))),
            (Value::Object(object), None) => check(object, Kind::Other, &path)?,
            (Value::Array(elements), None) => check_plain(elements, &path)?,
            _ => {}
        }
    }
    Ok(())
}

fn check_directive(object: &Map<String, Value>, path: &str) -> Result<(), String> {
    match object.keys().find(|field| field.starts_with('$')).map(String::as_str) {
        None => Ok(()),
        Some(DIRECTIVE) => match object[DIRECTIVE].as_str() {
            Some("replace" | "delete") => Ok(()),
            _ => Err(format!("`{path}.{DIRECTIVE}` is {}; accepted: replace, delete", object[DIRECTIVE])),
        },
        Some(other) => {
            Err(format!("`{path}.{other}` is not known; accepted: {DIRECTIVE}: replace, {DIRECTIVE}: delete"))
        }
    }
}

fn check_list(elements: &[Value], list: Keyed, path: &str) -> Result<(), String> {
    let mut seen = BTreeSet::new();
    for (index, element) in elements.iter().enumerate() {
        let at = format!("{path}[{index}]");
        let Value::Object(object) = element else {
            return Err(format!("`{at}` is {}; accepted: an object with {}", kind_of(element), list.keys.join(", ")));
        };
        check_directive(object, &at)?;
        if directive(object) == Some("replace") {
            if object.len() > 1 {
                let why = "it replaces the whole list, and stands in an element of its own";
                return Err(format!("`{at}.{DIRECTIVE}: replace` has other fields beside it: {why}"));
            }
            continue;
        }
        let Some(name) = list.name(element) else {
            return Err(format!("`{at}` lacks {}: it is merged by that", list.keys.join(" or ")));
        };
        if !seen.insert(name.clone()) {
            return Err(format!("`{path}[{name}]` is there twice"));
        }
        check(object, list.elements, &format!("{path}[{name}]"))?;
    }
    Ok(())
}

/// A list that is replaced as a whole.
fn check_plain(elements: &[Value], path: &str) -> Result<(), String> {
    for (index, element) in elements.iter().enumerate() {
        let path = format!("{path}[{index}]");
        match element {
            Value::Object(object) if object.contains_key(DIRECTIVE) => {
                return Err(format!("`{path}.{DIRECTIVE}` has no meaning: this list always replaces the one below it"));
            }
            Value::Object(object) => check(object, Kind::Other, &path)?,
            Value::Array(elements) => check_plain(elements, &path)?,
            _ => {}
        }
    }
    Ok(())
}

/// What a value is, for messages.
pub(super) fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "empty",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests;

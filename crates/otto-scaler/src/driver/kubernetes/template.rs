//! The operator's Pod template (`--pod-template FILE`): what every worker's Pod gets besides what the scaler says, and what
//! those of a resource class get besides that.
//!
//! Layers, each laid over the one before by Kubernetes' strategic merge ([`super::merge`]): the scaler's defaults, the
//! template's `metadata` and `spec`, those of the class, what is the scaler's own. The last may not be written by a template:
//! that is refused with its path ([`reserved`]). Whether the rest is a Pod, the API server says ([`super::trial`]): it knows
//! the fields of its own version.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::{Map, Value};

use super::merge::{self, Keyed, Kind, kind_of};

mod reserved;

/// Largest file. A Pod has at most about a megabyte.
const LARGEST: u64 = 1 << 20;

/// A template as read; everything in it can be merged.
#[derive(Clone, Debug, Default)]
pub(super) struct Template {
    /// `None`: there is no file.
    path: Option<PathBuf>,
    base: Part,
    classes: BTreeMap<String, Part>,
}

/// One layer.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Part {
    pub(super) labels: Map<String, Value>,
    pub(super) annotations: Map<String, Value>,
    pub(super) spec: Map<String, Value>,
}

impl Template {
    /// Reads the file; without one, an empty template.
    ///
    /// # Errors
    /// Names the file, the path in it, what is wrong there and what is accepted.
    pub(super) fn read(path: Option<&Path>) -> anyhow::Result<Self> {
        let Some(path) = path else { return Ok(Self::default()) };
        let shown = path.display();
        let text =
            read_bounded(path).with_context(|| format!("cannot read the Pod template {shown} (--pod-template)"))?;
        let template = Self::parse(&text).map_err(|problem| {
            anyhow::anyhow!("the Pod template {shown} (--pod-template) cannot be used: {problem}")
        })?;
        Ok(Self { path: Some(path.to_owned()), ..template })
    }

    /// Reads the text of a template.
    ///
    /// # Errors
    /// The path, what is wrong there and what is accepted.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        // As Kubernetes reads YAML: `defaultMode: 0440` is octal.
        let options = serde_saphyr::options! { legacy_octal_numbers: true, with_snippet: false };
        let file: Value = serde_saphyr::from_str_with_options(text, options).map_err(|error| error.to_string())?;
        let fields = match file {
            Value::Null => Map::new(),
            Value::Object(fields) => fields,
            other => return Err(format!("it is {}; accepted: metadata, spec, classes", kind_of(&other))),
        };
        let mut template = Self::default();
        for (field, value) in &fields {
            match field.as_str() {
                "metadata" | "spec" => template.base.take("", field, value)?,
                "classes" => template.classes = classes(value)?,
                _ => return Err(format!("`{field}` is not known; accepted: metadata, spec, classes")),
            }
        }
        Ok(template)
    }

    /// The resource classes that events may name.
    pub(super) fn classes(&self) -> impl Iterator<Item = &str> {
        self.classes.keys().map(String::as_str)
    }

    /// The layers of a class (`None`: of events that name none) over `ground`, which has the containers `job` and `otto`.
    pub(super) fn over(&self, ground: &Part, class: Option<&str>) -> Part {
        let class = class.and_then(|class| self.classes.get(class));
        let mut all = ground.clone();
        for layer in [Some(&self.base), class].into_iter().flatten() {
            all.lay(layer.clone(), ground);
        }
        all
    }

    /// How the template is called in messages.
    pub(super) fn shown(&self) -> String {
        match &self.path {
            Some(path) => format!("the Pod template {} (--pod-template)", path.display()),
            None => "no Pod template (--pod-template)".to_owned(),
        }
    }

    /// Where in the file a field of a Pod comes from: the path of what of it a layer has. `steps` are names of fields, and
    /// of elements in lists with keys. `None`: not from the file.
    pub(super) fn origin(&self, class: Option<&str>, steps: &[String]) -> Option<String> {
        let class = class.and_then(|class| Some((format!("classes.{class}."), self.classes.get(class)?)));
        let layers = class.into_iter().chain([(String::new(), &self.base)]);
        let mut deepest: Option<(usize, String)> = None;
        for (place, part) in layers {
            let (depth, path) = part.reach(steps);
            // `spec` and `spec.containers` say nothing.
            if depth >= 2 && deepest.as_ref().is_none_or(|(other, _)| depth > *other) {
                deepest = Some((depth, format!("{place}{path}")));
            }
        }
        deepest.map(|(_, path)| path)
    }
}

impl Part {
    /// One field of a layer of the file.
    fn take(&mut self, place: &str, field: &str, value: &Value) -> Result<(), String> {
        let path = format!("{place}{field}");
        let object = match value {
            Value::Null => return Ok(()),
            Value::Object(object) => object,
            other => return Err(format!("`{path}` is {}; accepted: an object", kind_of(other))),
        };
        if field == "spec" {
            merge::check(object, Kind::PodSpec, &path)?;
            if merge::directive(object) == Some("delete") {
                return Err(format!("`{path}.$patch` is \"delete\"; accepted here: replace"));
            }
            reserved::check_spec(object, &path)?;
            self.spec = object.clone();
            return Ok(());
        }
        for (field, value) in object {
            let path = format!("{path}.{field}");
            let texts = match (field.as_str(), value) {
                ("labels" | "annotations", Value::Null) => continue,
                ("labels" | "annotations", Value::Object(texts)) => texts,
                ("labels" | "annotations", other) => {
                    return Err(format!("`{path}` is {}; accepted: an object of texts", kind_of(other)));
                }
                _ => return Err(format!("`{path}` is not known here; accepted: labels, annotations")),
            };
            for (name, value) in texts {
                let path = format!("{path}[{name}]");
                if !value.is_string() && !value.is_null() {
                    return Err(format!("`{path}` is {}; accepted: a text (in quotes)", kind_of(value)));
                }
                reserved::check_name(name, &path)?;
            }
            let own = if field == "labels" { &mut self.labels } else { &mut self.annotations };
            own.clone_from(texts);
        }
        Ok(())
    }

    /// Lays another layer over this one. What replaces the spec, or its containers, replaces those of the template: the
    /// `ground`, which keeps the agent safe, stays below.
    fn lay(&mut self, mut upper: Part, ground: &Part) {
        if upper.spec.remove(merge::DIRECTIVE).is_some() {
            self.spec = ground.spec.clone();
        }
        if let Some(Value::Array(containers)) = upper.spec.get_mut("containers")
            && merge::replaces(containers)
        {
            containers.retain(|element| !merge::replaces(std::slice::from_ref(element)));
            self.spec.insert("containers".to_owned(), ground.spec.get("containers").cloned().unwrap_or_default());
        }
        merge::merge(&mut self.labels, &upper.labels, Kind::Other);
        merge::merge(&mut self.annotations, &upper.annotations, Kind::Other);
        merge::merge(&mut self.spec, &upper.spec, Kind::PodSpec);
    }

    /// How many of the steps this layer has, and their path.
    fn reach(&self, steps: &[String]) -> (usize, String) {
        let (first, rest, object, mut kind) = match steps {
            [spec, rest @ ..] if spec == "spec" => ("spec".to_owned(), rest, &self.spec, Kind::PodSpec),
            [metadata, field, rest @ ..] if metadata == "metadata" => {
                let own = if field == "labels" { &self.labels } else { &self.annotations };
                (format!("metadata.{field}"), rest, own, Kind::Other)
            }
            _ => return (0, String::new()),
        };
        let (mut depth, mut path) = (1, first);
        let mut at = Here::Object(object);
        for step in rest {
            let next = match at {
                Here::Object(object) => {
                    let Some(value) = object.get(step) else { break };
                    let _ = write!(path, ".{step}");
                    let list = merge::keyed(kind, step);
                    match (value, list) {
                        (Value::Object(object), _) => {
                            kind = Kind::Other;
                            Here::Object(object)
                        }
                        (Value::Array(elements), list) => Here::List(elements, list),
                        _ => Here::Leaf,
                    }
                }
                Here::List(elements, list) => {
                    let element = match list {
                        Some(list) => elements.iter().find(|element| list.name(element).as_ref() == Some(step)),
                        None => step.parse().ok().and_then(|index: usize| elements.get(index)),
                    };
                    let Some(element) = element else { break };
                    let _ = write!(path, "[{step}]");
                    kind = list.map_or(Kind::Other, |list| list.elements);
                    element.as_object().map_or(Here::Leaf, Here::Object)
                }
                Here::Leaf => break,
            };
            // A list of which it has no such element is not it.
            depth += usize::from(!matches!(next, Here::List(_, Some(_))));
            at = next;
        }
        (depth, path)
    }
}

/// Where a path is on its way through a layer.
enum Here<'a> {
    Object(&'a Map<String, Value>),
    List(&'a [Value], Option<Keyed>),
    Leaf,
}

fn classes(value: &Value) -> Result<BTreeMap<String, Part>, String> {
    let Value::Object(classes) = value else {
        let accepted = "an object with a name for each resource class";
        return Err(format!("`classes` is {}; accepted: {accepted}", kind_of(value)));
    };
    let mut parts = BTreeMap::new();
    for (name, value) in classes {
        let path = format!("classes.{name}");
        if name.is_empty() || name.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(format!("`classes` has the name {name:?}; accepted: names without spaces"));
        }
        let mut part = Part::default();
        match value {
            Value::Null => {}
            Value::Object(fields) => {
                for (field, value) in fields {
                    if !matches!(field.as_str(), "metadata" | "spec") {
                        return Err(format!("`{path}.{field}` is not known; accepted: metadata, spec"));
                    }
                    part.take(&format!("{path}."), field, value)?;
                }
            }
            other => return Err(format!("`{path}` is {}; accepted: metadata, spec", kind_of(other))),
        }
        parts.insert(name.clone(), part);
    }
    Ok(parts)
}

fn read_bounded(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    let size = std::fs::File::open(path)?.take(LARGEST + 1).read_to_string(&mut text)?;
    if size as u64 > LARGEST {
        return Err(std::io::Error::other(format!("it is larger than {LARGEST} bytes")));
    }
    Ok(text)
}

#[cfg(test)]
mod tests;

//! Fields of a stream entry, and gRPC requests, into a [`ScaleEvent`]. Pure: an error names the field, what it held and
//! what is accepted, and is the reason of the dead letter or the field violation of INVALID_ARGUMENT.

use std::collections::BTreeMap;

use otto_proto::v1::ScaleRequest;

use self::request::Request;
use self::value::{Given, bare, invalid, shown};
use super::{Direction, GivenSpec, Invalid, ScaleEvent};
use crate::task::{EntryId, Spec};

mod json;
mod request;
#[cfg(test)]
mod tests;
mod value;

/// Most bytes of names and values of one event. Its record, dead letter and launch file stay of this order.
pub(crate) const MAX_BYTES: usize = 512 * 1024;
/// Most fields of one entry.
const MAX_FIELDS: usize = 1024;
/// Most fields kept as metadata.
const MAX_METADATA: usize = 256;

/// Fields of a stream entry as they came: any bytes, in their order, repeated names included.
pub(crate) type Fields = Vec<(Vec<u8>, Vec<u8>)>;

/// Reads the fields of a stream entry. Without a task id, the task is the entry's own id.
///
/// # Errors
/// The reason for its dead letter.
pub(crate) fn from_fields(entry: EntryId, fields: &[(Vec<u8>, Vec<u8>)]) -> Result<ScaleEvent, Invalid> {
    check_size(fields.len(), fields.iter().map(|(name, value)| name.len() + value.len()).sum())?;
    let mut given = Collected::default();
    for (name, value) in fields {
        given.field(name, value)?;
    }
    given.finish(Some(entry))
}

/// Reads a gRPC request, `build_config` and `metadata` included.
///
/// # Errors
/// Its field violation for INVALID_ARGUMENT.
pub(crate) fn from_request(message: ScaleRequest, direction: Direction) -> Result<ScaleEvent, Invalid> {
    let maps = || message.build_config.iter().chain(&message.metadata);
    let texts = [&message.task_id, &message.repository, &message.commit_sha, &message.triggered_by, &message.reason];
    let bytes = maps().map(|(name, value)| name.len() + value.len()).sum::<usize>()
        + texts.iter().map(|text| text.len()).sum::<usize>();
    check_size(maps().count(), bytes)?;
    let mut given = Collected::default();
    given.request("", Request::from(message))?;
    given.direction.set("type", direction)?;
    given.finish(None)
}

/// Whether the fields say by themselves which task they are of; otherwise it is the entry's own id.
pub(crate) fn names_task(fields: &[(Vec<u8>, Vec<u8>)]) -> bool {
    fields.iter().any(|(name, value)| match name.as_slice() {
        b"task_id" | b"job_id" => true,
        b"payload" => std::str::from_utf8(value)
            .ok()
            .and_then(|text| Request::from_json("payload", text).ok())
            .is_some_and(|request| request.task_id.is_some()),
        _ => false,
    })
}

fn check_size(fields: usize, bytes: usize) -> Result<(), Invalid> {
    if fields > MAX_FIELDS {
        return Err(invalid("event", format_args!("{fields} fields"), "at most 1,024 fields"));
    }
    if bytes > MAX_BYTES {
        return Err(invalid("event", format_args!("{bytes} bytes"), "at most 524,288 bytes of names and values"));
    }
    Ok(())
}

/// What was given so far, under whatever names.
#[derive(Debug, Default)]
struct Collected {
    direction: Given<Direction>,
    has_payload: bool,
    task_id: Given<String>,
    count: Given<u32>,
    image: Given<String>,
    command: Given<Vec<String>>,
    args: Given<Vec<String>>,
    env: Given<BTreeMap<String, String>>,
    priority: Given<i32>,
    timeout_seconds: Given<u32>,
    max_attempts: Given<u32>,
    resource_class: Given<String>,
    repository: Given<String>,
    commit_sha: Given<String>,
    triggered_by: Given<String>,
    reason: Given<String>,
    timestamp: Given<String>,
    traceparent: Option<String>,
    metadata: BTreeMap<String, String>,
}

impl Collected {
    /// One field of a stream entry.
    fn field(&mut self, name: &[u8], value: &[u8]) -> Result<(), Invalid> {
        let Ok(field) = std::str::from_utf8(name) else {
            return Err(invalid("event", format_args!("field name {} is not UTF-8", shown(name)), "UTF-8 names"));
        };
        let text = value::utf8(&bare(field), value)?;
        match field {
            "type" => self.direction.set(field, value::direction(field, text)?),
            "task_id" | "job_id" => self.task_id.set(field, value::task_id(field, text)?),
            "pod_count" | "worker_count" | "target_replicas" => self.count.set(field, value::count(field, text)?),
            "env" => self.env.set(field, value::env(field, text)?),
            "repository" => set_text(&mut self.repository, field, text),
            "commit_sha" => set_text(&mut self.commit_sha, field, text),
            "triggered_by" => set_text(&mut self.triggered_by, field, text),
            "reason" => set_text(&mut self.reason, field, text),
            "timestamp" => set_text(&mut self.timestamp, field, text),
            "traceparent" => {
                self.traceparent = self.traceparent.take().or_else(|| value::traceparent(text));
                Ok(())
            }
            "payload" => {
                self.has_payload = true;
                self.request("payload.", Request::from_json(field, text)?)
            }
            _ if self.policy(field, field, text)? => Ok(()),
            _ => self.metadata("", field, text),
        }
    }

    /// What `build_config` takes under the same names as an entry. False: it is none of these.
    fn policy(&mut self, name: &str, field: &str, text: &str) -> Result<bool, Invalid> {
        match name {
            "image" => set_word(&mut self.image, field, text)?,
            "resource_class" => set_word(&mut self.resource_class, field, text)?,
            "command" => self.command.set(field, value::command(field, text)?)?,
            "args" => self.args.set(field, value::strings(field, text)?)?,
            "priority" => self.priority.set(field, value::priority(field, text)?)?,
            "timeout_seconds" => self.timeout_seconds.set(field, value::timeout_seconds(field, text)?)?,
            "max_attempts" => self.max_attempts.set(field, value::max_attempts(field, text)?)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// A `ScaleRequest`; `place` goes before the names of its fields in errors.
    fn request(&mut self, place: &str, request: Request) -> Result<(), Invalid> {
        let at = |name: &str| format!("{place}{name}");
        if let Some(task_id) = &request.task_id {
            let field = at("task_id");
            self.task_id.set(&field, value::task_id(&field, task_id)?)?;
        }
        if let Some(count) = request.worker_count {
            let field = at("worker_count");
            let count = u32::try_from(count).map_err(|_| invalid(&field, format_args!("`{count}`"), value::COUNT))?;
            self.count.set(&field, count)?;
        }
        set_text(&mut self.repository, &at("repository"), &request.repository)?;
        set_text(&mut self.commit_sha, &at("commit_sha"), &request.commit_sha)?;
        set_text(&mut self.triggered_by, &at("triggered_by"), &request.triggered_by)?;
        set_text(&mut self.reason, &at("reason"), &request.reason)?;
        let mut env = BTreeMap::new();
        for (name, text) in request.build_config {
            let field = at(&format!("build_config.{}", bare(&name)));
            if let Some(variable) = name.strip_prefix("env.") {
                value::variable(&mut env, &field, variable.to_owned(), text)?;
            } else if !self.policy(&name, &field, &text)? {
                return Err(invalid(
                    &field,
                    "is not known",
                    "image, command, args, env.NAME, priority, timeout_seconds, max_attempts, resource_class",
                ));
            }
        }
        if !env.is_empty() {
            self.env.set(&at("build_config.env"), env)?;
        }
        for (name, text) in request.metadata {
            if name == "traceparent" {
                self.traceparent = self.traceparent.take().or_else(|| value::traceparent(&text));
            } else {
                self.metadata(&at("metadata."), &name, &text)?;
            }
        }
        Ok(())
    }

    fn metadata(&mut self, place: &str, name: &str, text: &str) -> Result<(), Invalid> {
        let field = format!("{place}{}", bare(name));
        value::metadata_name(&field, name)?;
        match self.metadata.get(name) {
            Some(before) if before != text => {
                return Err(invalid(&field, "is given twice with different values", "each name once"));
            }
            Some(_) => return Ok(()),
            None => self.metadata.insert(name.to_owned(), text.to_owned()),
        };
        if self.metadata.len() > MAX_METADATA {
            return Err(invalid(&field, "is one unknown field too many", "at most 256 of them, kept as metadata"));
        }
        Ok(())
    }

    fn finish(self, entry: Option<EntryId>) -> Result<ScaleEvent, Invalid> {
        let direction = match self.direction.take() {
            Some(direction) => direction,
            // A ScaleRequest stands in the place of all other fields, and asks for workers.
            None if self.has_payload => Direction::Up,
            None => return Err(invalid("type", "is missing", "`scale_up`, `scale_down`")),
        };
        let task_id = match (self.task_id.take(), entry) {
            (Some(task_id), _) => task_id,
            (None, Some(entry)) => entry.to_string(),
            (None, None) => return Err(invalid("task_id", "is missing", "1 to 253 bytes")),
        };
        let count = match (self.count.take(), direction) {
            (Some(count), _) => count,
            (None, Direction::Up) => 1,
            (None, Direction::Down) => {
                let accepted = "with scale_down: the number of workers that may stay, 0 cancels the task";
                return Err(invalid("pod_count", "is missing", accepted));
            }
        };
        let context = Spec {
            repository: self.repository.take().unwrap_or_default(),
            commit_sha: self.commit_sha.take().unwrap_or_default(),
            triggered_by: self.triggered_by.take().unwrap_or_default(),
            reason: self.reason.take().unwrap_or_default(),
            timestamp: self.timestamp.take().unwrap_or_default(),
            traceparent: self.traceparent,
            metadata: self.metadata,
            ..Spec::default()
        };
        let spec = GivenSpec {
            image: self.image.take(),
            command: self.command.take(),
            args: self.args.take(),
            env: self.env.take(),
            priority: self.priority.take(),
            timeout_seconds: self.timeout_seconds.take(),
            max_attempts: self.max_attempts.take(),
            resource_class: self.resource_class.take(),
            context,
        };
        Ok(ScaleEvent { task_id, direction, count, spec, entry })
    }
}

fn set_text(given: &mut Given<String>, field: &str, text: &str) -> Result<(), Invalid> {
    value::text(field, text)?.map_or(Ok(()), |text| given.set(field, text))
}

fn set_word(given: &mut Given<String>, field: &str, text: &str) -> Result<(), Invalid> {
    value::word(field, text)?.map_or(Ok(()), |text| given.set(field, text))
}

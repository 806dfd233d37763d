//! A `ScaleRequest`: as gRPC delivers it, and as protobuf JSON in the field `payload`.
//! <https://protobuf.dev/programming-guides/json/>

use otto_proto::v1::ScaleRequest;

use super::json::Json;
use super::value::{bare, invalid, shown};
use crate::event::Invalid;

const PAYLOAD: &str = "a ScaleRequest as protobuf JSON";

/// What a request gave; unlike the message, it tells an absent count from 0.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Request {
    pub(super) task_id: Option<String>,
    pub(super) worker_count: Option<i32>,
    pub(super) repository: String,
    pub(super) commit_sha: String,
    pub(super) triggered_by: String,
    pub(super) reason: String,
    pub(super) build_config: Vec<(String, String)>,
    pub(super) metadata: Vec<(String, String)>,
}

impl From<ScaleRequest> for Request {
    fn from(message: ScaleRequest) -> Self {
        let mut request = Self {
            task_id: Some(message.task_id),
            worker_count: Some(message.worker_count),
            repository: message.repository,
            commit_sha: message.commit_sha,
            triggered_by: message.triggered_by,
            reason: message.reason,
            build_config: message.build_config.into_iter().collect(),
            metadata: message.metadata.into_iter().collect(),
        };
        // A map has no order; the first error should be the same one every time.
        request.build_config.sort();
        request.metadata.sort();
        request
    }
}

impl Request {
    /// Reads protobuf JSON: both spellings of each name, `null` is absent, an unknown or repeated name is an error.
    pub(super) fn from_json(field: &str, text: &str) -> Result<Self, Invalid> {
        let json = Json::parse(text)
            .map_err(|e| invalid(field, format_args!("{} is not JSON: {e}", shown(text.as_bytes())), PAYLOAD))?;
        let Json::Object(members) = json else {
            return Err(invalid(field, json.shown(), PAYLOAD));
        };
        let mut request = Self::default();
        let mut seen: Vec<&'static str> = Vec::new();
        for (written, value) in members {
            let Some(name) = canonical(&written) else {
                return Err(invalid(
                    &format!("{field}.{}", bare(&written)),
                    "is no field of a ScaleRequest",
                    "taskId, workerCount, repository, commitSha, buildConfig, triggeredBy, reason, metadata",
                ));
            };
            let place = format!("{field}.{name}");
            if seen.contains(&name) {
                return Err(invalid(&place, "is given twice", "each field once"));
            }
            seen.push(name);
            if value == Json::Null {
                continue;
            }
            match name {
                "task_id" => request.task_id = Some(string(&place, value)?),
                "worker_count" => request.worker_count = Some(int32(&place, &value)?),
                "repository" => request.repository = string(&place, value)?,
                "commit_sha" => request.commit_sha = string(&place, value)?,
                "triggered_by" => request.triggered_by = string(&place, value)?,
                "reason" => request.reason = string(&place, value)?,
                "build_config" => request.build_config = map(&place, value)?,
                _ => request.metadata = map(&place, value)?,
            }
        }
        Ok(request)
    }
}

fn canonical(written: &str) -> Option<&'static str> {
    Some(match written {
        "taskId" | "task_id" => "task_id",
        "repository" => "repository",
        "commitSha" | "commit_sha" => "commit_sha",
        "workerCount" | "worker_count" => "worker_count",
        "buildConfig" | "build_config" => "build_config",
        "triggeredBy" | "triggered_by" => "triggered_by",
        "reason" => "reason",
        "metadata" => "metadata",
        _ => return None,
    })
}

fn string(field: &str, value: Json) -> Result<String, Invalid> {
    match value {
        Json::String(value) => Ok(value),
        other => Err(invalid(field, other.shown(), "a string")),
    }
}

/// A number, or a number in a string; 3.0 and 3e0 are 3.
fn int32(field: &str, value: &Json) -> Result<i32, Invalid> {
    let whole = |float: f64| (float.fract() == 0.0 && float.abs() <= f64::from(u32::MAX)).then_some(float as i64);
    let number = match value {
        Json::Number(number) => number.as_i64().or_else(|| number.as_f64().and_then(whole)),
        Json::String(text) if !text.is_empty() && !text.contains(char::is_whitespace) && !text.starts_with('+') => {
            text.parse().ok().or_else(|| text.parse().ok().and_then(whole))
        }
        _ => None,
    };
    number
        .and_then(|number| i32::try_from(number).ok())
        .ok_or_else(|| invalid(field, value.shown(), super::value::COUNT))
}

fn map(field: &str, value: Json) -> Result<Vec<(String, String)>, Invalid> {
    let Json::Object(members) = value else {
        return Err(invalid(field, value.shown(), "a JSON object of strings"));
    };
    let mut map: Vec<(String, String)> = Vec::with_capacity(members.len());
    for (name, value) in members {
        let place = format!("{field}.{}", bare(&name));
        map.push((name, string(&place, value)?));
    }
    map.sort();
    if let Some(pair) = map.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        return Err(invalid(&format!("{field}.{}", bare(&pair[0].0)), "is given twice", "each name once"));
    }
    Ok(map)
}

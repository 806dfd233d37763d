//! One value of an event: its text into its type, within its limits.

use std::collections::BTreeMap;
use std::fmt::Debug;

use super::json::Json;
use crate::event::{Direction, Invalid};

/// Longest task id, in bytes.
const MAX_TASK_ID: usize = 253;
/// Longest text field (image, repository, reason, …) in bytes: it becomes one environment variable or label.
const MAX_TEXT: usize = 4096;
/// Longest single argument or `NAME=VALUE`, in bytes. Linux' MAX_ARG_STRLEN is 131,072 with the final NUL.
const MAX_ARGUMENT: usize = 131_071;
/// Most elements of `command` and of `args`.
const MAX_ARGUMENTS: usize = 4096;
/// Most environment variables of one event.
const MAX_ENV: usize = 1000;
/// Longest name of an environment variable or metadata field, in bytes.
const MAX_NAME: usize = 256;
/// A year.
const MAX_TIMEOUT_SECONDS: u32 = 31_536_000;
const MAX_ATTEMPTS: u32 = 100;
/// Characters of a value that an error message repeats.
const SHOWN: usize = 64;

/// What is accepted for the number of workers.
pub(super) const COUNT: &str = "a whole number from 0 to the configured maximum of workers";
const ARRAY: &str = r#"a JSON array of strings, like ["sh","-c","make"]"#;
const OBJECT: &str = r#"a JSON object of strings, like {"NAME":"value"}"#;

pub(super) fn invalid(field: &str, problem: impl std::fmt::Display, accepted: &str) -> Invalid {
    Invalid { field: field.to_owned(), reason: format!("{problem} (accepted: {accepted})") }
}

/// A value as an error message repeats it: escaped, shortened, in backticks.
pub(super) fn shown(value: &[u8]) -> String {
    // A character has at most four bytes, so these are enough and a megabyte of garbage is not copied.
    let head = &value[..value.len().min(SHOWN * 4)];
    let text = String::from_utf8_lossy(head);
    let mut short: String = text.chars().take(SHOWN).flat_map(char::escape_debug).collect();
    if text.chars().count() > SHOWN || head.len() < value.len() {
        short = format!("{short}…` ({} bytes)", value.len());
        return format!("`{short}");
    }
    format!("`{short}`")
}

/// A setting that may come under several names; they must agree.
#[derive(Debug)]
pub(super) struct Given<T>(Option<(String, T)>);

impl<T> Default for Given<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T: PartialEq + Debug> Given<T> {
    pub(super) fn set(&mut self, field: &str, value: T) -> Result<(), Invalid> {
        match &self.0 {
            Some((other, before)) if *before != value => Err(invalid(
                field,
                format_args!(
                    "{} disagrees with `{other}`, which is {}",
                    shown(format!("{value:?}").as_bytes()),
                    shown(format!("{before:?}").as_bytes())
                ),
                "one of these names, or the same value under each",
            )),
            Some(_) => Ok(()),
            None => {
                self.0 = Some((field.to_owned(), value));
                Ok(())
            }
        }
    }

    pub(super) fn take(self) -> Option<T> {
        self.0.map(|(_, value)| value)
    }
}

/// The bytes of a field as text.
pub(super) fn utf8<'a>(field: &str, value: &'a [u8]) -> Result<&'a str, Invalid> {
    std::str::from_utf8(value).map_err(|e| {
        let problem = format_args!("{} is not UTF-8 at byte {}", shown(value), e.valid_up_to());
        invalid(field, problem, "UTF-8 text")
    })
}

pub(super) fn direction(field: &str, value: &str) -> Result<Direction, Invalid> {
    match value {
        "scale_up" => Ok(Direction::Up),
        "scale_down" => Ok(Direction::Down),
        _ => Err(invalid(field, shown(value.as_bytes()), "`scale_up`, `scale_down`")),
    }
}

pub(super) fn task_id(field: &str, value: &str) -> Result<String, Invalid> {
    let accepted = "1 to 253 bytes without control characters";
    if value.is_empty() {
        return Err(invalid(field, "is empty", accepted));
    }
    if value.len() > MAX_TASK_ID || value.chars().any(char::is_control) {
        return Err(invalid(field, shown(value.as_bytes()), accepted));
    }
    Ok(value.to_owned())
}

/// A text field; an empty one is as good as absent.
pub(super) fn text(field: &str, value: &str) -> Result<Option<String>, Invalid> {
    if value.len() > MAX_TEXT || value.contains('\0') {
        return Err(invalid(field, shown(value.as_bytes()), "at most 4,096 bytes without NUL"));
    }
    Ok((!value.is_empty()).then(|| value.to_owned()))
}

/// A text field that is a name of something: no spaces, no control characters.
pub(super) fn word(field: &str, value: &str) -> Result<Option<String>, Invalid> {
    if value.len() > MAX_TEXT || value.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err(invalid(
            field,
            shown(value.as_bytes()),
            "at most 4,096 bytes without spaces and control characters",
        ));
    }
    Ok((!value.is_empty()).then(|| value.to_owned()))
}

pub(super) fn count(field: &str, value: &str) -> Result<u32, Invalid> {
    number(field, value, 0, u32::MAX, COUNT)
}

pub(super) fn timeout_seconds(field: &str, value: &str) -> Result<u32, Invalid> {
    number(field, value, 0, MAX_TIMEOUT_SECONDS, "a whole number of seconds from 0 (no limit) to 31536000")
}

pub(super) fn max_attempts(field: &str, value: &str) -> Result<u32, Invalid> {
    number(field, value, 1, MAX_ATTEMPTS, "a whole number from 1 to 100")
}

pub(super) fn priority(field: &str, value: &str) -> Result<i32, Invalid> {
    value.parse().map_err(|_| {
        invalid(field, shown(value.as_bytes()), "a whole number from -2147483648 to 2147483647, higher goes first")
    })
}

fn number(field: &str, value: &str, min: u32, max: u32, accepted: &str) -> Result<u32, Invalid> {
    // `u32::from_str` takes a leading plus; an event does not.
    let digits = !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit());
    match value.parse() {
        Ok(number) if digits && (min..=max).contains(&number) => Ok(number),
        _ => Err(invalid(field, shown(value.as_bytes()), accepted)),
    }
}

/// `command` and `args`.
pub(super) fn strings(field: &str, value: &str) -> Result<Vec<String>, Invalid> {
    let json = Json::parse(value)
        .map_err(|e| invalid(field, format_args!("{} is not JSON: {e}", shown(value.as_bytes())), ARRAY))?;
    let Json::Array(items) = json else {
        return Err(invalid(field, json.shown(), ARRAY));
    };
    if items.len() > MAX_ARGUMENTS {
        return Err(invalid(field, format_args!("{} elements", items.len()), "at most 4,096 elements"));
    }
    let mut strings = Vec::with_capacity(items.len());
    for (index, item) in items.into_iter().enumerate() {
        let field = format!("{field}[{index}]");
        match item {
            Json::String(item) => strings.push(argument(&field, item)?),
            other => return Err(invalid(&field, other.shown(), "a string")),
        }
    }
    Ok(strings)
}

/// `command`: it names a program.
pub(super) fn command(field: &str, value: &str) -> Result<Vec<String>, Invalid> {
    let command = strings(field, value)?;
    match command.first() {
        None => Err(invalid(field, "`[]` names no program", ARRAY)),
        Some(program) if program.is_empty() => {
            Err(invalid(&format!("{field}[0]"), "is empty", "the program's name or path"))
        }
        Some(_) => Ok(command),
    }
}

/// `env`.
pub(super) fn env(field: &str, value: &str) -> Result<BTreeMap<String, String>, Invalid> {
    // Values may be secrets: no message repeats one.
    let json = Json::parse(value).map_err(|e| invalid(field, format_args!("is not JSON: {e}"), OBJECT))?;
    let Json::Object(members) = json else {
        return Err(invalid(field, json.shown(), OBJECT));
    };
    let mut env = BTreeMap::new();
    for (name, value) in members {
        let member = format!("{field}.{}", bare(&name));
        match value {
            Json::String(value) => variable(&mut env, &member, name, value)?,
            other => return Err(invalid(&member, other.shown(), "a string")),
        }
    }
    Ok(env)
}

/// Adds one environment variable.
pub(super) fn variable(
    env: &mut BTreeMap<String, String>,
    field: &str,
    name: String,
    value: String,
) -> Result<(), Invalid> {
    let named = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    // The rule of Kubernetes, so that one event means the same with every driver.
    if name.is_empty()
        || name.len() > MAX_NAME
        || name.starts_with(|c: char| c.is_ascii_digit())
        || name == "."
        || name.starts_with("..")
        || !name.chars().all(named)
    {
        let accepted = "1 to 256 letters, digits, `_`, `-` or `.`, not beginning with a digit or two dots";
        return Err(invalid(field, format_args!("name {}", shown(name.as_bytes())), accepted));
    }
    if name.starts_with("OTTO_") {
        return Err(invalid(field, "names that begin with `OTTO_` are the system's own", "another name"));
    }
    if name.len() + 1 + value.len() > MAX_ARGUMENT || value.contains('\0') {
        let problem = format_args!("value of {} bytes", value.len());
        return Err(invalid(field, problem, "at most 131,071 bytes with its name, without NUL"));
    }
    if env.insert(name, value).is_some() {
        return Err(invalid(field, "is given twice", "each name once"));
    }
    if env.len() > MAX_ENV {
        return Err(invalid(field, "is one variable too many", "at most 1,000 variables"));
    }
    Ok(())
}

fn argument(field: &str, value: String) -> Result<String, Invalid> {
    if value.len() > MAX_ARGUMENT || value.contains('\0') {
        return Err(invalid(field, shown(value.as_bytes()), "at most 131,071 bytes without NUL"));
    }
    Ok(value)
}

/// The name of a metadata field.
pub(super) fn metadata_name(field: &str, name: &str) -> Result<(), Invalid> {
    if name.is_empty() || name.len() > MAX_NAME || name.chars().any(char::is_control) {
        let problem = format_args!("name {}", shown(name.as_bytes()));
        return Err(invalid(field, problem, "names of 1 to 256 bytes without control characters"));
    }
    Ok(())
}

/// A name of the sender's in the name of a field: escaped and shortened.
pub(super) fn bare(name: &str) -> String {
    shown(name.as_bytes()).trim_matches('`').to_owned()
}

/// A W3C trace context that can be continued. One that is malformed is ignored, as the specification demands.
/// <https://www.w3.org/TR/trace-context/#traceparent-header>
pub(super) fn traceparent(value: &str) -> Option<String> {
    let hex = |part: &str, length: usize| {
        part.len() == length && part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    };
    let zeros = |part: &str| part.bytes().all(|b| b == b'0');
    let mut parts = value.trim().split('-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let well_formed = hex(version, 2)
        && version != "ff"
        && hex(trace, 32)
        && !zeros(trace)
        && hex(span, 16)
        && !zeros(span)
        && hex(flags, 2)
        && (version != "00" || parts.next().is_none())
        && value.len() <= MAX_NAME;
    well_formed.then(|| value.trim().to_owned())
}

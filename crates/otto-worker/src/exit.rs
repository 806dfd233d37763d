//! How a job ended, as the scaler is told: in `exit.json` of the run directory, and in the file of `--exit-file`.

use std::path::Path;

use serde::{Deserialize, Deserializer, Serialize};

use crate::access::Access;

/// Most bytes of the file of `--exit-file`. The kubelet reads 4,096 bytes of a container's termination message, and shares
/// 12 KiB among all containers of a Pod (`MaxPodTerminationMessageLogLength`): what is longer is cut, and is no JSON then. So
/// ten sidecars are possible.
pub(crate) const EXIT_FILE_BYTES: usize = 1024;

/// How a job ended. Values of `class` are fixed in ARCHITECTURE.md.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Exit {
    /// 128+n after signal n. Absent: nobody knows.
    pub(crate) exit_code: Option<i32>,
    pub(crate) signal: Option<i32>,
    pub(crate) class: Class,
    /// A sentence for people; empty after a success.
    pub(crate) message: String,
    pub(crate) started_at_ms: u64,
    pub(crate) ended_at_ms: u64,
}

/// What kind of an end it was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Class {
    Success,
    /// Ended by itself with another code than 0, or by a signal that was not ours.
    Exited,
    /// Killed by the kernel, which had no memory left for it.
    OutOfMemory,
    /// Ran longer than it may.
    Deadline,
    /// Told to stop.
    Stopped,
    /// The program does not exist or cannot be run.
    Image,
    /// The agent was killed.
    #[default]
    AgentLost,
    /// Something of the machine.
    Infrastructure,
}

/// `exit.json` as somebody wrote it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Ended {
    pub(crate) exit_code: Option<i32>,
    pub(crate) signal: Option<i32>,
    /// [`Class::AgentLost`] if it is one that no agent writes.
    #[serde(deserialize_with = "class")]
    pub(crate) class: Class,
    pub(crate) message: String,
    pub(crate) started_at_ms: Option<u64>,
    pub(crate) ended_at_ms: u64,
}

fn class<'de, D: Deserializer<'de>>(text: D) -> Result<Class, D::Error> {
    let value = serde_json::Value::deserialize(text)?;
    Ok(serde_json::from_value(value).unwrap_or_default())
}

impl Ended {
    /// Writes the file of `--exit-file` again, for a container that was started a second time.
    pub(crate) fn tell(&self, exit_file: Option<&Path>) {
        let exit = Exit {
            exit_code: self.exit_code,
            signal: self.signal,
            class: self.class,
            message: self.message.clone(),
            started_at_ms: self.started_at_ms.unwrap_or_default(),
            ended_at_ms: self.ended_at_ms,
        };
        exit.tell(exit_file);
    }
}

impl From<&Exit> for Ended {
    fn from(exit: &Exit) -> Self {
        Ended {
            exit_code: exit.exit_code,
            signal: exit.signal,
            class: exit.class,
            message: exit.message.clone(),
            started_at_ms: Some(exit.started_at_ms),
            ended_at_ms: exit.ended_at_ms,
        }
    }
}

impl Exit {
    /// As JSON of at most `limit` bytes; for that the message is cut, between characters.
    fn fitting(&self, limit: usize) -> serde_json::Result<Vec<u8>> {
        const CUT: &str = "…";
        // In JSON a byte of the message takes up to this (`\u0001`).
        const WIDEST: usize = 6;
        let mut exit = self.clone();
        let mut keep = self.message.len();
        loop {
            let text = serde_json::to_vec(&exit)?;
            if text.len() <= limit || keep == 0 {
                return Ok(text);
            }
            // Too little rather than too much, then again.
            keep = self.message.floor_char_boundary(keep.saturating_sub((text.len() - limit).div_ceil(WIDEST)));
            exit.message.clear();
            exit.message.push_str(&self.message[..keep]);
            exit.message.push_str(CUT);
        }
    }

    /// Writes the file of `--exit-file`. Where Kubernetes is to read it, it is a file that is there already and cannot be
    /// replaced by another, so it is written in its place. That it cannot be written is told, and no more: the job's end
    /// is the same.
    pub(crate) fn tell(&self, exit_file: Option<&Path>) {
        let Some(path) = exit_file else { return };
        let write = || -> anyhow::Result<()> {
            // One that is there keeps its mode.
            let access = path.parent().and_then(|dir| Access::of(dir).ok()).unwrap_or(Access::Owner);
            Ok(access.write(path, &self.fitting(EXIT_FILE_BYTES)?)?)
        };
        if let Err(error) = write() {
            tracing::error!("how the job ended could not be written to {} (--exit-file): {error:#}", path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_of_any_length_and_kind_fits() {
        for message in ["x".repeat(5000), "\u{1}\"ü".repeat(3000), "€".repeat(1400), "short".to_owned()] {
            let exit =
                Exit { exit_code: Some(137), signal: Some(9), message, started_at_ms: u64::MAX, ..Exit::default() };
            let text = exit.fitting(EXIT_FILE_BYTES).unwrap();
            assert!(text.len() <= EXIT_FILE_BYTES, "{}", text.len());
            assert!(exit.message == "short" || text.len() > EXIT_FILE_BYTES - 20, "{}", text.len());
            let ended: Ended = serde_json::from_slice(&text).unwrap();
            match ended.message.strip_suffix('…') {
                Some(beginning) => assert!(exit.message.starts_with(beginning) && !beginning.is_empty()),
                None => assert_eq!(ended.message, "short"),
            }
        }
    }
}

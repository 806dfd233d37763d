//! Ends what a dead agent left running.
//!
//! The agent was the leader of a session, in which its job runs in a process group of its own; and every process of the job
//! inherits a random `OTTO_JOB_LAUNCH_ID`. A process is killed only if it is certain to be the job's:
//! - it has that in its environment, or
//! - it is in the agent's session, and that cannot be another one by now: a number is given away again only when no
//!   process has it as pid, group or session any more. So it is ours if the agent is not reaped yet, or if the process
//!   began before the agent was last seen alive.
//!
//! Each is opened, looked at again by its start time, and killed by its descriptor: a pid given to another process in
//! between is not hit.

use std::fs;
use std::io;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// New ones may appear while others are killed; but not for ever.
const WITHIN: Duration = Duration::from_secs(5);

/// A dead agent.
#[derive(Clone, Debug)]
pub(super) struct Dead {
    /// The variable, `NAME=VALUE`, that every process of the job inherits. `None`: unknown.
    pub(super) mark: Option<String>,
    /// The agent's pid, which is its session's id. `None`: unknown.
    pub(super) session: Option<i32>,
    /// Clock ticks since boot at which it was known to be alive. `u64::MAX`: its pid is still its own. `None`: never.
    pub(super) alive_at: Option<u64>,
}

/// Of `/proc/PID/stat`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stat {
    zombie: bool,
    session: i32,
    /// Clock ticks since boot.
    start: u64,
}

impl Dead {
    /// Kills all that is left, and waits until it is gone, for a few seconds at most. Blocks.
    /// Returns how many were killed.
    ///
    /// # Errors
    /// When processes cannot be listed, or some are still there.
    pub(super) fn end_remnants(&self) -> io::Result<usize> {
        let start = Instant::now();
        let mut killed = 0;
        let mut pause = Duration::from_millis(1);
        loop {
            let remnants = self.remnants()?;
            if remnants.is_empty() {
                return Ok(killed);
            }
            if start.elapsed() > WITHIN {
                let pids: Vec<i32> = remnants.iter().map(|(pid, _)| *pid).collect();
                return Err(io::Error::other(format!("processes {pids:?} of the job cannot be killed")));
            }
            for (pid, stat) in remnants {
                killed += usize::from(kill(pid, stat));
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }

    fn remnants(&self) -> io::Result<Vec<(i32, Stat)>> {
        let own = rustix::process::getpid().as_raw_nonzero().get();
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc")? {
            let Ok(entry) = entry else { continue };
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            // Ended meanwhile, or ended and not reaped.
            let Some(stat) = stat(pid).filter(|stat| !stat.zombie) else { continue };
            if pid != own && (self.is_in_session(stat) || self.is_marked(pid)) {
                found.push((pid, stat));
            }
        }
        Ok(found)
    }

    fn is_in_session(&self, stat: Stat) -> bool {
        self.session == Some(stat.session) && self.alive_at.is_some_and(|alive| stat.start <= alive)
    }

    fn is_marked(&self, pid: i32) -> bool {
        let Some(mark) = &self.mark else { return false };
        // Unreadable: another user's, so not started by us.
        let Ok(environment) = fs::read(format!("/proc/{pid}/environ")) else { return false };
        environment.split(|byte| *byte == 0).any(|pair| pair == mark.as_bytes())
    }
}

fn kill(pid: i32, seen: Stat) -> bool {
    let Some(raw) = Pid::from_raw(pid) else { return false };
    let Ok(fd) = pidfd_open(raw, PidfdFlags::empty()) else { return false };
    let same = stat(pid).is_some_and(|now| now.start == seen.start && now.session == seen.session);
    same && pidfd_send_signal(fd, Signal::KILL).is_ok()
}

fn stat(pid: i32) -> Option<Stat> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn parse_stat(text: &str) -> Option<Stat> {
    // The name in parentheses may hold anything, parentheses and blanks too.
    let rest = text.rsplit_once(')')?.1;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    Some(Stat {
        zombie: matches!(*fields.first()?, "Z" | "X"),
        session: fields.get(3)?.parse().ok()?,
        start: fields.get(19)?.parse().ok()?,
    })
}

/// When a process that is alive began, in clock ticks since boot; every process has begun at or before now.
pub(super) fn now_ticks() -> Option<u64> {
    let uptime = fs::read_to_string("/proc/uptime").ok()?;
    let (seconds, rest) = uptime.split_once('.')?;
    let hundredths: u64 = rest.get(..2)?.parse().ok()?;
    let whole = seconds.parse::<u64>().ok()?.checked_mul(100)?.checked_add(hundredths)?;
    // Start times are in units of sysconf(_SC_CLK_TCK).
    Some(whole * rustix::param::clock_ticks_per_second() / 100)
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;
    use std::process::{Child, Command, Stdio};

    use super::*;

    fn sleeper(mark: Option<&str>) -> Child {
        let mut command = Command::new("sleep");
        command.arg("1000").stdin(Stdio::null()).stdout(Stdio::null()).env_remove("OTTO_JOB_LAUNCH_ID");
        if let Some(mark) = mark {
            command.env("OTTO_JOB_LAUNCH_ID", mark);
        }
        command.process_group(0).spawn().unwrap()
    }

    fn pid(child: &Child) -> i32 {
        child.id().cast_signed()
    }

    #[test]
    fn stat_lines_with_strange_names() {
        let text = "42 (a) b (c) R 1 42 17 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 98765 1 1 1";
        assert_eq!(parse_stat(text), Some(Stat { zombie: false, session: 17, start: 98765 }));
        assert!(parse_stat("42 (x) Z 1 42 17 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 98765 1").unwrap().zombie);
        assert_eq!(parse_stat(""), None);
        assert_eq!(parse_stat("1 (x) R 1"), None);
        let own = stat(rustix::process::getpid().as_raw_nonzero().get()).unwrap();
        assert!(own.start <= now_ticks().unwrap(), "{own:?}");
    }

    #[test]
    fn only_what_is_certainly_the_jobs_is_killed() {
        let id = format!("remnants-{}", std::process::id());
        let mut marked = sleeper(Some(&id));
        let mut other = sleeper(Some(&format!("{id}0")));
        let mut unmarked = sleeper(None);
        let session = stat(pid(&unmarked)).unwrap().session;
        // A session whose number may belong to others by now: they began after the agent was last seen.
        let mark = Some(format!("OTTO_JOB_LAUNCH_ID={id}"));
        let dead = Dead { mark, session: Some(session), alive_at: Some(0) };
        assert_eq!(dead.end_remnants().unwrap(), 1);
        assert!(!marked.wait().unwrap().success());
        assert!(other.try_wait().unwrap().is_none() && unmarked.try_wait().unwrap().is_none());
        // A pid that was given to another process since it was looked at.
        let seen = stat(pid(&unmarked)).unwrap();
        assert!(!kill(pid(&unmarked), Stat { start: seen.start.wrapping_sub(1), ..seen }));
        assert!(unmarked.try_wait().unwrap().is_none());
        assert!(kill(pid(&unmarked), seen));
        unmarked.wait().unwrap();
        other.kill().unwrap();
        other.wait().unwrap();
    }
}

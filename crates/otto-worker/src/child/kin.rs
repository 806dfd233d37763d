//! Processes that outlive the job: its group, orphans that became our children, and those of an agent that was killed.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, getpid, pidfd_open, pidfd_send_signal};
use tokio::time::{Instant, sleep};

use super::reap::reap;

/// SIGKILL ends a process at once, unless it stands in the kernel (a dead network file system); then it is left.
const PATIENCE: Duration = Duration::from_secs(2);
const TICK: Duration = Duration::from_millis(2);

/// Kills what is left of the job after its end: its process group, and whoever left the group but became our child when
/// its parent died. All are reaped.
pub(crate) async fn end_rest(job: Pid) {
    let until = Instant::now() + PATIENCE;
    loop {
        // The group's number is not given to others as long as the group has a member.
        let _ = rustix::process::kill_process_group(job, Signal::KILL);
        if !reap(job).living {
            return;
        }
        for pid in children() {
            // They are our children and not reaped yet: the numbers are theirs.
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
        if !reap(job).living {
            return;
        }
        if Instant::now() >= until {
            tracing::warn!("processes of the job could not be killed and are left behind");
            return;
        }
        sleep(TICK).await;
    }
}

/// Our children, those of all threads.
fn children() -> Vec<Pid> {
    let mut found = Vec::new();
    let Ok(threads) = fs::read_dir("/proc/self/task") else { return found };
    let mut listed = false;
    for thread in threads.flatten() {
        if let Ok(text) = fs::read_to_string(thread.path().join("children")) {
            listed = true;
            found.extend(text.split_ascii_whitespace().filter_map(|pid| pid.parse().ok().and_then(Pid::from_raw)));
        }
    }
    if !listed {
        // A kernel without CONFIG_PROC_CHILDREN.
        let ours = getpid().as_raw_nonzero().get();
        found = processes().filter(|process| process.parent == ours).filter_map(|process| process.pid()).collect();
    }
    found
}

/// What the start mark says about a job whose agent was killed.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Lost {
    /// The job's process, and its group; 0: it had not begun.
    pub(crate) job_pid: i32,
    /// Session of the agent, and so of the job.
    pub(crate) session: i32,
    /// Clock ticks since the machine's start, at or before the job's start.
    pub(crate) since_ticks: u64,
    /// Of the machine's start.
    pub(crate) boot_id: String,
    /// In which the numbers are valid. 0: unknown, as in marks of earlier agents.
    #[serde(default)]
    pub(crate) pid_namespace: u64,
    /// Random; every process of the job has it in its environment as `OTTO_JOB_RUN_ID`.
    pub(crate) run_id: String,
}

/// Kills what still runs of a job whose agent was killed. Numbers may have been given to others meanwhile, so a process
/// is only touched if it belongs to the group and the session of the job and is not older than the job, or carries the
/// run's random id in its environment. (Ids of tasks and workers are no proof: another scaler on this machine may have
/// the same.)
pub(crate) async fn end_lost(lost: &Lost) {
    // What was in another container ended with that.
    if lost.boot_id != boot_id() || ![0, pid_namespace()].contains(&lost.pid_namespace) {
        return;
    }
    let until = Instant::now() + PATIENCE;
    loop {
        let mut living = false;
        for process in processes() {
            if !lost.has(&process) {
                continue;
            }
            let Some(pid) = process.pid() else { continue };
            let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) else { continue };
            // Looked at again now that the handle holds it: the number cannot change its owner any more.
            if Process::read(pid.as_raw_nonzero().get()).is_some_and(|now| now.start == process.start) {
                living |= pidfd_send_signal(&handle, Signal::KILL) != Err(Errno::SRCH);
            }
        }
        if !living {
            return;
        }
        if Instant::now() >= until {
            tracing::warn!("processes of the lost job could not be killed and are left behind");
            return;
        }
        sleep(TICK * 10).await;
    }
}

impl Lost {
    fn has(&self, process: &Process) -> bool {
        let in_group = || self.job_pid > 0 && process.group == self.job_pid && process.session == self.session;
        let is_marked = || !self.run_id.is_empty() && process.carries(&format!("OTTO_JOB_RUN_ID={}", self.run_id));
        process.start >= self.since_ticks && (in_group() || is_marked())
    }
}

/// A line of /proc/PID/stat.
#[derive(Debug)]
struct Process {
    number: i32,
    parent: i32,
    group: i32,
    session: i32,
    /// Clock ticks since the machine's start.
    start: u64,
}

impl Process {
    fn read(number: i32) -> Option<Self> {
        Self::parse(number, &fs::read_to_string(format!("/proc/{number}/stat")).ok()?)
    }

    /// Fields as in proc_pid_stat(5). Zombies are none: they are dead, and wait for their parent.
    fn parse(number: i32, stat: &str) -> Option<Self> {
        // The name is in parentheses and may hold anything.
        let (_, fields) = stat.rsplit_once(')')?;
        let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
        let field = |at: usize| fields.get(at)?.parse::<i64>().ok();
        if matches!(*fields.first()?, "Z" | "X") {
            return None;
        }
        Some(Process {
            number,
            parent: field(1)? as i32,
            group: field(2)? as i32,
            session: field(3)? as i32,
            start: field(19)?.cast_unsigned(),
        })
    }

    fn pid(&self) -> Option<Pid> {
        Pid::from_raw(self.number)
    }

    fn carries(&self, mark: &str) -> bool {
        let Ok(environment) = fs::read(format!("/proc/{}/environ", self.number)) else { return false };
        environment.split(|byte| *byte == 0).any(|entry| entry == mark.as_bytes())
    }
}

fn processes() -> impl Iterator<Item = Process> {
    let ours = getpid().as_raw_nonzero().get();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(move |number| *number != ours)
        .filter_map(Process::read)
}

/// Id of our session; 0 if its leader is outside our PID namespace (pid_namespaces(7)), as with a process that was started
/// into a container. `getsid` answers 0 then too, which rustix takes for impossible.
pub(crate) fn session() -> i32 {
    Process::read(getpid().as_raw_nonzero().get()).map_or(0, |own| own.session)
}

/// Of this start of the machine; empty if the kernel does not tell.
pub(crate) fn boot_id() -> String {
    let text = fs::read_to_string(Path::new("/proc/sys/kernel/random/boot_id")).unwrap_or_default();
    text.trim().to_owned()
}

/// Of our PID namespace, which a container has of its own; 0: unknown.
pub(crate) fn pid_namespace() -> u64 {
    fs::metadata("/proc/self/ns/pid").map_or(0, |namespace| namespace.ino())
}

/// Clock ticks since the machine's start, as in /proc/PID/stat.
pub(crate) fn ticks() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let per_second = rustix::param::clock_ticks_per_second();
    now.tv_sec.cast_unsigned() * per_second + now.tv_nsec.cast_unsigned() * per_second / 1_000_000_000
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;

    use super::*;

    #[test]
    fn a_name_with_parentheses_and_spaces() {
        let stat = "77 (a) b (c) S 5 6 7 0 -1 0 1 2 3 4 5 6 7 8 20 0 1 0 4242 1000 1";
        let process = Process::parse(77, stat).unwrap();
        assert_eq!((process.parent, process.group, process.session, process.start), (5, 6, 7, 4242));
        assert!(Process::parse(77, &stat.replace(" S ", " Z ")).is_none());
        assert!(Process::parse(77, "77 (x").is_none());
    }

    #[test]
    fn we_are_there_and_not_from_the_future() {
        let own = Process::read(getpid().as_raw_nonzero().get()).unwrap();
        assert!(own.start <= ticks());
    }

    #[tokio::test]
    async fn only_the_jobs_own_processes_are_ended() {
        let mut job = std::process::Command::new("sleep").arg("60").process_group(0).spawn().unwrap();
        let own = Process::read(job.id().cast_signed()).unwrap();
        let right = Lost {
            job_pid: own.group,
            session: own.session,
            since_ticks: own.start,
            boot_id: boot_id(),
            pid_namespace: pid_namespace(),
            run_id: "no-such-run".into(),
        };
        for wrong in [
            Lost { session: own.session + 1, ..right.clone() },
            Lost { since_ticks: own.start + 1, ..right.clone() },
            Lost { boot_id: "another".into(), ..right.clone() },
            Lost { pid_namespace: right.pid_namespace + 1, ..right.clone() },
        ] {
            end_lost(&wrong).await;
            assert_eq!(job.try_wait().unwrap(), None, "{wrong:?}");
        }
        end_lost(&right).await;
        assert!(!job.wait().unwrap().success());
    }
}

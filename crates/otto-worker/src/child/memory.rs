//! Whether the kernel killed processes here because there was no memory left: counters of our control group, which in a
//! container is the container's.
//!
//! Control groups version 1: `memory.oom_control` (cgroup-v1/memory), version 2: `memory.events` (cgroup-v2).

use std::fs;
use std::path::{Path, PathBuf};

/// The control group's state at the job's start.
#[derive(Debug)]
pub(crate) struct Memory {
    group: Group,
    kills: u64,
}

/// What the kernel did since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shortage {
    /// Processes it killed.
    pub(crate) kills: u64,
    /// What all processes of the group may use together, bytes. Absent: no limit, or not of this group alone.
    pub(crate) limit: Option<u64>,
}

impl Memory {
    /// The state now. `None`: there are no counters.
    pub(crate) fn now() -> Option<Self> {
        let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
        let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
        find(&groups, &mounts).into_iter().find_map(|group| Some(Memory { kills: group.kills()?, group }))
    }

    /// What happened since; `None`: nothing was killed.
    pub(crate) fn shortage(&self) -> Option<Shortage> {
        let kills = self.group.kills()?.checked_sub(self.kills).filter(|kills| *kills > 0)?;
        Some(Shortage { kills, limit: self.group.limit() })
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Group {
    V1(PathBuf),
    V2(PathBuf),
}

impl Group {
    fn kills(&self) -> Option<u64> {
        let (dir, file) = match self {
            Group::V1(dir) => (dir, "memory.oom_control"),
            Group::V2(dir) => (dir, "memory.events"),
        };
        kills(&fs::read_to_string(dir.join(file)).ok()?)
    }

    fn limit(&self) -> Option<u64> {
        let (dir, file) = match self {
            Group::V1(dir) => (dir, "memory.limit_in_bytes"),
            Group::V2(dir) => (dir, "memory.max"),
        };
        limit(&fs::read_to_string(dir.join(file)).ok()?)
    }
}

/// The same key in both versions. (With `oom_group_kill` of version 2 each process counts here, too.)
fn kills(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

/// `max` in version 2, and the largest number of pages in version 1, is none.
fn limit(text: &str) -> Option<u64> {
    text.trim().parse().ok().filter(|limit| *limit < 1 << 60)
}

/// Directories in which the group's files may be, the best first. `groups` is /proc/self/cgroup, `mounts`
/// /proc/self/mountinfo, as in cgroups(7) and proc_pid_mountinfo(5).
fn find(groups: &str, mounts: &str) -> Vec<Group> {
    // `HIERARCHY:CONTROLLERS:PATH`; no controllers: version 2.
    let groups: Vec<(&str, &str)> = groups.lines().filter_map(|line| line.split_once(':')?.1.split_once(':')).collect();
    let old = groups.iter().find(|(controllers, _)| controllers.split(',').any(|name| name == "memory"));
    let is_old = old.is_some();
    let Some((_, path)) = old.or_else(|| groups.iter().find(|(controllers, _)| controllers.is_empty())) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for line in mounts.lines() {
        // `ID PARENT DEVICE ROOT MOUNT-POINT OPTIONS [TAG…] - TYPE SOURCE SUPER-OPTIONS`
        let Some((mount, system)) = line.split_once(" - ") else { continue };
        let (mount, system): (Vec<&str>, Vec<&str>) = (mount.split(' ').collect(), system.split(' ').collect());
        let (&[_, _, _, root, point, ..], &[kind, _, options, ..]) = (&*mount, &*system) else { continue };
        let fits = match kind {
            "cgroup" => is_old && options.split(',').any(|option| option == "memory"),
            "cgroup2" => !is_old,
            _ => false,
        };
        if !fits {
            continue;
        }
        let group = |dir: PathBuf| if is_old { Group::V1(dir) } else { Group::V2(dir) };
        // In a container the mount's root is its own group, and the path may be seen from outside.
        if let Ok(below) = Path::new(path).strip_prefix(root) {
            found.push(group(Path::new(point).join(below)));
        }
        found.push(group(point.into()));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_of_both_versions() {
        assert_eq!(kills("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"), Some(3));
        assert_eq!(kills("low 0\nhigh 0\nmax 4471\noom 1\noom_kill 2\noom_group_kill 1\nsock_throttled 0\n"), Some(2));
        assert_eq!((kills("oom_kill_disable 0\nunder_oom 0\n"), kills("")), (None, None));
        assert_eq!(
            (limit("268435456\n"), limit("max\n"), limit("9223372036854771712\n")),
            (Some(256 << 20), None, None)
        );
    }

    #[test]
    fn the_groups_directory() {
        let v2_mount = "32 24 0:28 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate";
        // A container with a namespace of control groups, as Kubernetes makes them on version 2.
        assert_eq!(find("0::/\n", v2_mount)[0], Group::V2("/sys/fs/cgroup".into()));
        // A service of the machine.
        let service = find("0::/system.slice/a.service\n", v2_mount);
        assert_eq!(service[0], Group::V2("/sys/fs/cgroup/system.slice/a.service".into()));
        // A container on version 1: the path is the machine's, the mount shows the container's own group.
        let container = "7:memory:/kubepods/burstable/pod1/c1\n3:cpu,cpuacct:/kubepods/burstable/pod1/c1\n0::/\n";
        let mounts = "50 40 0:30 /kubepods/burstable/pod1/c1 /sys/fs/cgroup/cpu,cpuacct ro - cgroup cgroup rw,cpu,cpuacct\n\
            51 40 0:31 /kubepods/burstable/pod1/c1 /sys/fs/cgroup/memory ro,nosuid master:11 - cgroup cgroup rw,memory\n\
            52 40 0:32 / /sys/fs/cgroup/unified ro - cgroup2 cgroup2 rw";
        assert_eq!(find(container, mounts)[0], Group::V1("/sys/fs/cgroup/memory".into()));
        // The machine itself on version 1.
        let machine = "51 40 0:31 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory";
        assert_eq!(find("7:memory:/a/b\n", machine)[0], Group::V1("/sys/fs/cgroup/memory/a/b".into()));
        assert!(find("", v2_mount).is_empty() && find("0::/\n", "").is_empty() && find("x\ny:z\n", "a - b").is_empty());
    }
}

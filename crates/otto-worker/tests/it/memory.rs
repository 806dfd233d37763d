//! A job that the kernel kills because there is no memory left, in a control group as of a container.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;

use crate::agent::{Setup, stderr};
use crate::server::Server;

/// A control group with a limit of memory. Removed when dropped.
struct Group(PathBuf);

impl Group {
    /// `None`: this machine lets us make none (not root, or a container that cannot).
    fn new(name: &str, limit: &str) -> Option<Self> {
        let name = format!("otto-test-{}-{name}", std::process::id());
        // Version 1, else version 2. Without swap, or with what there is of it counted too.
        let old = PathBuf::from("/sys/fs/cgroup/memory");
        let (group, limits) = if old.join("memory.limit_in_bytes").exists() {
            (old.join(name), ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"])
        } else {
            (PathBuf::from("/sys/fs/cgroup").join(name), ["memory.max", "memory.swap.max"])
        };
        fs::create_dir(&group).ok()?;
        let group = Group(group);
        let swap = if limits[1] == "memory.swap.max" { "0" } else { limit };
        fs::write(group.0.join(limits[0]), limit).ok()?;
        if group.0.join(limits[1]).exists() {
            fs::write(group.0.join(limits[1]), swap).ok()?;
        }
        Some(group)
    }

    /// Starts a program in it.
    fn wrapper(&self) -> [String; 4] {
        let script = format!("echo $$ > {}/cgroup.procs && exec \"$@\"", self.0.display());
        ["sh", "-c", &script, "sh"].map(str::to_owned)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

#[tokio::test]
async fn a_job_without_memory_is_told() {
    let server = Server::start().await;
    for (name, job, class, code, words) in [
        ("itself", "exec tail /dev/zero", "out_of_memory", 137, "ran out of memory (its container may use 96MiB)"),
        ("child", "tail /dev/zero; exit $?", "out_of_memory", 137, "ran out of memory"),
        (
            "other",
            "tail /dev/zero; exit 3",
            "exited",
            3,
            "exit code 3; before that, 1 of its processes ran out of memory",
        ),
        ("survived", "tail /dev/zero; exit 0", "success", 0, ""),
        ("killed", "kill -KILL $$", "exited", 137, "signal 9"),
    ] {
        let Some(group) = Group::new(name, "100663296") else {
            eprintln!("no control group can be made here: only the reading of counters is tested");
            return;
        };
        let setup = Setup::in_pod(&server.url()).wrapper(&group.wrapper()).run_flags(&["--exit-file", "told"]);
        let output = setup.run_script(&format!("echo begun; {job}")).await;
        assert_eq!(output.status.code(), Some(code), "{name}: {}", stderr(&output));
        let told: Value = serde_json::from_slice(&fs::read(setup.path("told")).unwrap()).unwrap();
        assert_eq!(told["class"], class, "{name}: {told}");
        let message = told["message"].as_str().unwrap();
        assert!(message.contains(words) && (class == "success") == message.is_empty(), "{name}: {message}");
        let state = server.store.lock();
        let finish = state.runs.values().find(|run| {
            run.finish.as_ref().is_some_and(|finish| finish.exit_code == Some(code) && run.messages()[0] == "begun")
        });
        let finish = finish.unwrap().finish.clone().unwrap();
        assert!(class != "out_of_memory" || finish.error_message.contains("ran out of memory"), "{finish:?}");
        drop(state);
        server.store.lock().runs.clear();
    }
}

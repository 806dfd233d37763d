//! The job's agent as the first process of a container, with any image and any user.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Command;

use rustix::process::{Pid, Signal, geteuid, kill_process};

use crate::agent::{BINARY, Setup, eventually, line_of, lives, stderr};
use crate::server::Server;

/// `unshare` with these flags; who is not root needs a user namespace of his own for it.
pub(crate) fn unshare(flags: &[&str]) -> Vec<String> {
    let own = if geteuid().is_root() || flags.contains(&"-U") { &[][..] } else { &["-U", "-r"][..] };
    ["unshare"].iter().chain(own).chain(flags).map(ToString::to_string).collect()
}

pub(crate) fn in_namespace(flags: &[&str]) -> Command {
    let words = unshare(flags);
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]);
    command
}

/// The agent as the first process of a PID namespace.
pub(crate) fn first_process() -> Vec<String> {
    unshare(&["-p", "-m", "-f", "--mount-proc", "--kill-child"])
}

fn status(pid: Pid, field: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).unwrap_or_default();
    text.lines().find_map(|line| line.strip_prefix(field)).unwrap_or_default().trim().to_owned()
}

#[tokio::test]
async fn the_first_process_passes_signals_on_and_reaps() {
    let server = Server::start().await;
    let setup = Setup::in_pod(&server.url()).wrapper(&first_process());
    let agent = setup.start_script(
        "trap 'echo got TERM; exit 9' TERM; trap 'echo got HUP' HUP
         sh -c 'sh -c \"setsid sleep 0.2\" & exit'; setsid sh -c 'echo $$ > in; exec sleep 1000' &
         echo $$ > pid; while :; do sleep 0.01; done",
    );
    line_of(&setup.path("pid")).await;
    line_of(&setup.path("in")).await;
    let inside = agent.inside().await;
    assert!(status(inside, "NSpid:").ends_with("\t1"), "it is the first process");
    // Its children are the job, which has a few, and no zombies.
    eventually("orphans are reaped", || {
        let pid = inside.as_raw_nonzero();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
        let children: Vec<&str> = children.split_ascii_whitespace().collect();
        (children.len() == 1 && children.iter().all(|child| lives(child))).then_some(())
    })
    .await;
    for (signal, name) in [(Signal::HUP, "got HUP"), (Signal::TERM, "got TERM")] {
        kill_process(inside, signal).unwrap();
        eventually(name, || {
            let state = server.store.lock();
            state.runs.values().next().filter(|run| run.messages().contains(&name.to_owned())).map(drop)
        })
        .await;
    }
    let output = agent.output().await;
    assert_eq!(output.status.code(), Some(9), "{}", stderr(&output));
    let run = server.complete().await;
    assert_eq!(run.finish.unwrap().exit_code, Some(9));
}

#[tokio::test]
async fn told_to_stop_before_the_job_has_begun_the_first_process_does_not_forget_it() {
    let server = Server::start().await;
    let mut setup = Setup::in_pod(&server.url()).wrapper(&first_process());
    // Held up at its beginning: somebody holds the lock for a moment.
    fs::create_dir_all(setup.run_dir()).unwrap();
    let lock = fs::File::create(setup.run_dir().join("lock")).unwrap();
    lock.lock_shared().unwrap();
    setup = setup.run_flags(&["--grace", "10s"]);
    let agent = setup.start_script("sleep 1000");
    let inside = agent.inside().await;
    eventually("it listens", || {
        (u64::from_str_radix(&status(inside, "SigCgt:"), 16).ok()? & (1 << (Signal::TERM.as_raw() - 1)) != 0)
            .then_some(())
    })
    .await;
    kill_process(inside, Signal::TERM).unwrap();
    drop(lock);
    let output = agent.output().await;
    // Should the machine be so slow that it gave up: it has ended all the same.
    assert!(matches!(output.status.code(), Some(143 | 125)), "{:?} {}", output.status, stderr(&output));
}

#[tokio::test]
async fn a_killed_first_process_takes_everything_with_it() {
    let server = Server::start().await;
    let setup = Setup::in_pod(&server.url()).wrapper(&first_process());
    let agent = setup.start_script("setsid sh -c 'sleep 1000' & echo a; echo $$ > pid; while :; do sleep 0.01; done");
    line_of(&setup.path("pid")).await;
    let inside = agent.inside().await;
    eventually("a line", || server.store.lock().runs.values().next().filter(|run| !run.lines.is_empty()).map(drop))
        .await;
    kill_process(inside, Signal::KILL).unwrap();
    let _ = agent.output().await;
    // In another namespace its numbers mean others: the drainer touches nobody. This one has the number of the job.
    let job: i32 = line_of(&setup.path("pid")).await.parse().unwrap();
    assert!(job < 1000, "{job}");
    let drainer = setup.start_drainer();
    let output = drainer.output().await;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let run = server.complete_without_digest().await;
    assert_eq!((run.messages(), run.gaps.len()), (vec!["a".to_owned()], 1));
}

/// A root file system with programs and nothing else, that cannot be written.
#[tokio::test]
async fn any_image_will_do() {
    let server = Server::start().await;
    let setup = Setup::in_pod(&server.url());
    let volume = setup.path("otto");
    fs::set_permissions(&volume, fs::Permissions::from_mode(0o2777)).unwrap();
    fs::set_permissions(setup.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    assert!(Command::new(BINARY).arg("install").arg(volume.join("bin")).status().unwrap().success());
    let told = setup.path("told");
    fs::write(&told, "").unwrap();
    fs::set_permissions(&told, fs::Permissions::from_mode(0o666)).unwrap();

    // `/usr` and the links into it are all there is of the machine.
    let root = setup.path("root");
    for dir in ["usr", "proc", "otto", "dev"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    fs::write(root.join("dev/termination-log"), "").unwrap();
    fs::write(root.join("dev/null"), "").unwrap();
    let mut mounts = Vec::new();
    for dir in ["bin", "lib", "lib64"] {
        match fs::read_link(format!("/{dir}")) {
            Ok(target) => symlink(target, root.join(dir)).unwrap(),
            Err(_) if fs::exists(format!("/{dir}")).unwrap() => {
                fs::create_dir(root.join(dir)).unwrap();
                mounts.push(dir);
            }
            Err(_) => {}
        }
    }
    let at = root.display();
    let more: String = mounts.iter().map(|dir| format!("mount --rbind /{dir} {at}/{dir} && ")).collect();
    // Only root can be another user.
    let user = if geteuid().is_root() { "--userspec=4711:4711 --groups=4242" } else { "" };
    let script = format!(
        "mount --bind {at} {at} && mount --rbind /usr {at}/usr && {more} mount --rbind /proc {at}/proc &&
         mount --bind {} {at}/otto && mount --bind {} {at}/dev/termination-log && mount --bind /dev/null {at}/dev/null &&
         mount -o remount,bind,ro {at} && exec chroot {user} {at} /usr/bin/env -i \"$@\"",
        volume.display(),
        told.display(),
    );
    let job = "id -u; echo home=$HOME; touch /x 2>/dev/null || echo read-only; ls -d /tmp /etc 2>/dev/null; echo end";
    let output = in_namespace(&["-m"])
        .args(["sh", "-c", &script, "sh", "/otto/bin/otto-worker", "run", "--run-dir", "/otto/run"])
        .args(["--spool-dir", "/otto/run/spool", "--task-id", "task", "--worker-id", "worker"])
        .args(["--exit-file", "/dev/termination-log", "--log-server", &server.url(), "--", "/bin/sh", "-c", job])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let uid = if geteuid().is_root() { "4711" } else { "0" };
    assert_eq!(server.complete().await.messages(), [uid, "home=", "read-only", "end"]);
    let told: serde_json::Value = serde_json::from_slice(&fs::read(&told).unwrap()).unwrap();
    assert_eq!((told["class"].as_str(), told["exit_code"].as_i64()), (Some("success"), Some(0)));
    assert!(setup.run_dir().join("drained").exists());
    assert_eq!(stderr(&output), "", "nothing to complain about");
}

/// Runs a script in the container of a process.
pub(crate) fn enter(of: Pid, script: &str) {
    let own = if geteuid().is_root() { &[][..] } else { &["-U", "--preserve-credentials"][..] };
    let mut command = Command::new("nsenter");
    command.args(own).args(["-t", &of.as_raw_nonzero().to_string(), "-p", "-m", "sh", "-c", script]);
    assert!(command.status().unwrap().success());
}

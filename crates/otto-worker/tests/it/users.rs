//! The two agents of a Pod as different users, who share the volume's group.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Signal, getegid, geteuid};

use crate::agent::{BINARY, Setup, eventually, line_of, stderr};
use crate::server::Server;

/// Another user than ours can only be had by root. Otherwise both are ours, and what others of the group could do is seen
/// by the modes alone, which are looked at in any case.
fn as_user(uid: u32, group: u32, umask: &str) -> Vec<String> {
    let mut words = vec!["sh".to_owned(), "-c".to_owned(), format!("umask {umask}; exec \"$@\""), "sh".to_owned()];
    if geteuid().is_root() {
        let user = format!("--reuid={uid} --regid={uid} --groups={group} --bounding-set=-all --inh-caps=-all");
        words.push("setpriv".to_owned());
        words.extend(user.split(' ').map(str::to_owned));
        if uid == 0 {
            // As a container that runs as root and has dropped its capabilities.
            words.push("--securebits=+noroot,+noroot_locked".to_owned());
        }
    }
    words
}

/// The volume as the kubelet makes it, with the agent in it.
fn volume(setup: &Setup, group: u32) -> PathBuf {
    fs::set_permissions(setup.dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let volume = setup.path("otto");
    chown(&volume, None, Some(group)).unwrap();
    fs::set_permissions(&volume, fs::Permissions::from_mode(0o2777)).unwrap();
    assert!(Command::new(BINARY).arg("install").arg(volume.join("bin")).status().unwrap().success());
    volume.join("bin/otto-worker")
}

fn everything(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    entries
        .flat_map(|path| if path.is_dir() { [vec![path.clone()], everything(&path)].concat() } else { vec![path] })
        .collect()
}

/// All of the run directory is for the group, and for nobody else.
fn assert_shared(run_dir: &Path, group: u32) {
    let found = [vec![run_dir.to_owned()], everything(run_dir)].concat();
    assert!(found.len() >= 5, "{found:?}");
    for path in found {
        let metadata = fs::metadata(&path).unwrap();
        let expected = if metadata.is_dir() { 0o2770 } else { 0o660 };
        assert_eq!((metadata.mode() & 0o7777, metadata.gid()), (expected, group), "{}", path.display());
    }
}

#[tokio::test]
async fn a_drainer_takes_over_from_an_agent_of_another_user() {
    let group = if geteuid().is_root() { 4242 } else { getegid().as_raw() };
    for (job_user, umask, drain_user) in
        [(10_001, "022", 65_532), (10_001, "077", 65_532), (0, "022", 65_532), (65_532, "077", 10_001)]
    {
        let mut server = Server::absent().await;
        let setup = Setup::in_pod(&server.url()).flags(&["--compression", "none"]);
        let program = volume(&setup, group);
        let setup = setup.program(program).wrapper(&as_user(drain_user, group, "077"));
        let mut drainer = setup.start_drainer();
        let setup = setup.wrapper(&as_user(job_user, group, umask));
        let agent = setup.start_script("id -u > uid; umask > umask; seq 1000; touch all; exec sleep 1000");
        eventually("printed", || setup.path("all").exists().then_some(())).await;
        if geteuid().is_root() {
            assert_eq!(line_of(&setup.path("uid")).await, job_user.to_string());
            assert_eq!(fs::metadata(setup.run_dir()).unwrap().uid(), job_user);
        }
        assert_eq!(line_of(&setup.path("umask")).await, format!("0{umask}"));
        eventually("spooled", || setup.is_spooled("1000\n").then_some(())).await;
        assert_shared(&setup.run_dir(), group);
        agent.signal(Signal::KILL);
        let _ = agent.output().await;
        eventually("the end is noted", || setup.run_dir().join("exit.json").exists().then_some(())).await;
        drainer.assert_lives();
        server.appear().await;
        let output = drainer.output().await;
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let run = server.complete_without_digest().await;
        assert_eq!((run.messages().len(), run.gaps.len()), (1000, 1), "{}", stderr(&output));
        setup.assert_spool_is_empty();
        assert_shared(&setup.run_dir(), group);
        if geteuid().is_root() {
            assert_eq!(fs::metadata(setup.run_dir().join("drained")).unwrap().uid(), drain_user);
        }
    }
}

#[tokio::test]
async fn without_a_group_to_share_with_everything_is_for_one_user() {
    let mut server = Server::absent().await;
    let setup = Setup::in_pod(&server.url()).run_flags(&["--drain-timeout", "50ms"]);
    assert!(setup.run_script("echo x").await.status.success());
    let found = [vec![setup.run_dir()], everything(&setup.run_dir())].concat();
    assert!(found.len() >= 7, "{found:?}");
    for path in found {
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!(metadata.mode() & 0o7777, if metadata.is_dir() { 0o700 } else { 0o600 }, "{}", path.display());
    }
    if geteuid().is_root() {
        // A drainer of another user says so.
        fs::set_permissions(setup.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let setup = setup.wrapper(&as_user(65_532, 4242, "022"));
        assert!(Command::new(BINARY).arg("install").arg(setup.path("bin")).status().unwrap().success());
        let program = setup.path("bin/otto-worker");
        let setup = setup.program(program);
        let output = setup.start_drainer().output().await;
        assert_eq!(output.status.code(), Some(125), "{}", stderr(&output));
        assert!(stderr(&output).contains("--run-dir") && stderr(&output).contains("ermission"), "{}", stderr(&output));
    }
    server.appear().await;
}

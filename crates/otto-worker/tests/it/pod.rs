//! A Pod's two agents: one installs itself and drains, the other runs the job. They share a directory.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use otto_proto::v1::log_gap;
use rustix::process::{Signal, kill_process};
use serde_json::Value;

use crate::agent::{Agent, BINARY, Setup, eventually, line_of, stderr};
use crate::container;
use crate::server::{Faults, Server};

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn numbers(count: usize) -> Vec<String> {
    (1..=count).map(|number| number.to_string()).collect()
}

fn install(dir: &Path) -> Output {
    Command::new(BINARY).arg("install").arg(dir).output().unwrap()
}

/// The drainer has seen what there is: it sleeps in the kernel, for an event or for the lock, and has done so for a while.
async fn settled(drainer: &Agent) {
    let pid = drainer.pid.as_raw_nonzero();
    let (mut switches, mut since) = (None, Instant::now());
    eventually("the drainer waits", || {
        let threads: Vec<_> = fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten().collect();
        let read = |name: &str| threads.iter().filter_map(|it| fs::read_to_string(it.path().join(name)).ok()).collect();
        let (stats, statuses): (Vec<String>, Vec<String>) = (read("stat"), read("status"));
        // Its signal handlers are there, so it has begun.
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:\t"))?;
        let listens = u64::from_str_radix(caught, 16).ok()? & (1 << (Signal::TERM.as_raw() - 1)) != 0;
        let asleep = stats.iter().all(|stat| stat.rsplit_once(')').is_some_and(|(_, rest)| rest.starts_with(" S")));
        let count = statuses.iter().flat_map(|it| it.lines()).filter(|line| line.contains("voluntary_ctxt_switches"));
        let now = Some(count.map(str::to_owned).collect::<Vec<_>>()).filter(|_| listens && asleep);
        if now.is_none() || now != switches {
            (switches, since) = (now, Instant::now());
        }
        (switches.is_some() && since.elapsed() >= Duration::from_millis(100)).then_some(())
    })
    .await;
}

#[test]
fn the_agent_installs_itself() {
    let dir = tempfile::tempdir().unwrap();
    let bin = dir.path().join("a/bin");
    let program = bin.join("otto-worker");
    // With any umask.
    let script = format!("umask 077; exec {BINARY} install {}", bin.display());
    let output = Command::new("sh").args(["-c", &script]).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{}", stderr(&output));
    assert_eq!(fs::metadata(&program).unwrap().mode() & 0o7777, 0o755);
    assert_eq!(fs::metadata(&bin).unwrap().mode() & 0o777, 0o755);
    assert!(fs::read(&program).unwrap() == fs::read(BINARY).unwrap());

    // While it runs there: the old one goes on, the new one is another file.
    let mut running = Command::new(&program);
    running.args(["run", "--spool-dir"]).arg(dir.path().join("spool"));
    let running = running.args(["--", "sh", "-c", "echo up; read x"]).stdin(std::process::Stdio::piped());
    let mut running = running.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut up = [0; 3];
    std::io::Read::read_exact(running.stdout.as_mut().unwrap(), &mut up).unwrap();
    let before = fs::metadata(&program).unwrap().ino();
    // Several at once, too; the copy can install itself further.
    std::thread::scope(|scope| {
        for from in [BINARY, program.to_str().unwrap(), BINARY] {
            let bin = &bin;
            scope.spawn(move || {
                let output = Command::new(from).arg("install").arg(bin).output().unwrap();
                assert!(output.status.success(), "{}", stderr(&output));
            });
        }
    });
    assert_ne!(fs::metadata(&program).unwrap().ino(), before);
    drop(running.stdin.take());
    running.wait().unwrap();
    let names: Vec<_> = fs::read_dir(&bin).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["otto-worker"], "nothing else is left");
}

#[test]
fn why_it_cannot_be_installed_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let in_place = dir.path().join("in-place");
    fs::create_dir_all(in_place.join("otto-worker/x")).unwrap();
    for (at, words) in
        [(file.clone(), "making the directory"), (file.join("below"), "directory"), (in_place.clone(), "in-place")]
    {
        let output = install(&at);
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(125), "{text}");
        assert!(text.contains(&at.display().to_string()) && text.contains(words), "{text}");
    }
    assert_eq!(fs::read_dir(&in_place).unwrap().count(), 1, "what was copied is removed");

    let volume = dir.path().join("volume");
    fs::create_dir(&volume).unwrap();
    let script = format!("mount -t tmpfs -o noexec none {0} && exec {BINARY} install {0}/bin", volume.display());
    let output = container::in_namespace(&["-m"]).args(["sh", "-c", &script]).output().unwrap();
    assert_eq!(output.status.code(), Some(125), "{}", stderr(&output));
    assert!(stderr(&output).contains("noexec"), "{}", stderr(&output));
}

#[tokio::test]
async fn a_drainer_that_nobody_came_to_ends_when_it_is_told() {
    let server = Server::start().await;
    for there in [false, true] {
        let setup = Setup::in_pod(&server.url());
        if there {
            fs::create_dir_all(setup.run_dir()).unwrap();
        }
        let mut drainer = setup.start_drainer();
        settled(&drainer).await;
        drainer.assert_lives();
        drainer.signal(Signal::TERM);
        let output = drainer.output().await;
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        assert_eq!(setup.run_dir().exists(), there, "it makes nothing: the agent's user may be another");
        assert!(!setup.run_dir().join("drained").exists());
    }
}

#[tokio::test]
async fn a_drainer_ends_with_an_agent_that_delivered_everything() {
    let server = Server::start().await;
    // It begins long before the volume has anything in it, or when the agent is there, or has been there.
    for begins in ["before", "while", "after"] {
        let setup = Setup::in_pod(&server.url()).run_flags(&["--exit-file", "told"]);
        let early = (begins == "before").then(|| setup.start_drainer());
        if let Some(drainer) = &early {
            settled(drainer).await;
        }
        let agent = setup.start_script("echo $$ > pid; echo a; while [ ! -e go ]; do sleep 0.01; done; exit 3");
        line_of(&setup.path("pid")).await;
        let mut drainer = match early {
            Some(drainer) => Some(drainer),
            None => (begins == "while").then(|| setup.start_drainer()),
        };
        if let Some(drainer) = &mut drainer {
            settled(drainer).await;
            drainer.assert_lives();
        }
        fs::write(setup.path("go"), "").unwrap();
        let output = agent.output().await;
        assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
        let drainer = drainer.unwrap_or_else(|| setup.start_drainer());
        let output = drainer.output().await;
        assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""), "{begins}");
        assert_eq!(fs::read(setup.run_dir().join("drained")).unwrap(), b"");
        assert_eq!(fs::read(setup.path("told")).unwrap(), fs::read(setup.run_dir().join("exit.json")).unwrap());
        setup.assert_spool_is_empty();
    }
    let state = server.store.lock();
    assert_eq!(state.runs.len(), 3);
    assert!(state.runs.values().all(|run| run.messages() == ["a"] && run.gaps.is_empty()));
}

#[tokio::test]
async fn a_drainer_that_waits_does_nothing() {
    let setup = Setup::in_pod("http://127.0.0.1:9");
    let drainer = setup.start_drainer();
    settled(&drainer).await;
    let pid = drainer.pid.as_raw_nonzero();
    let ticks = || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_ascii_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    };
    let switches = || {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let count = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
        count.trim().parse::<u64>().unwrap()
    };
    // Before the agent comes, and while it is there and prints.
    let mut agent = None;
    for there in [false, true] {
        if there {
            agent = Some(setup.start_script("echo $$ > pid; while :; do echo x; sleep 0.01; done"));
            line_of(&setup.path("pid")).await;
            settled(&drainer).await;
        }
        let (before, woken) = (ticks(), switches());
        tokio::time::sleep(Duration::from_millis(1500)).await;
        assert!(ticks() - before <= 1 && switches() - woken <= 5, "{} {}", ticks() - before, switches() - woken);
    }
    let anonymous = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let anonymous = anonymous.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    let anonymous: u64 = anonymous.trim().trim_end_matches(" kB").trim().parse().unwrap();
    assert!(anonymous < 4096, "{anonymous} kB, besides the program itself");
    drop(agent);
}

#[tokio::test]
async fn a_drainer_sends_what_an_agent_gave_up_to_send() {
    let mut server = Server::absent().await;
    let setup = Setup::in_pod(&server.url()).run_flags(&["--drain-timeout", "100ms"]);
    let mut drainer = setup.start_drainer();
    let output = setup.run_script("seq 1000; exit 6").await;
    assert_eq!(output.status.code(), Some(6), "{}", stderr(&output));
    // However long the log server is away.
    tokio::time::sleep(Duration::from_millis(500)).await;
    drainer.assert_lives();
    assert!(!setup.run_dir().join("drained").exists());
    server.appear().await;
    let output = drainer.output().await;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let run = server.complete().await;
    assert_eq!((run.messages(), run.finish.unwrap().exit_code), (numbers(1000), Some(6)));
    assert_eq!(fs::read(setup.run_dir().join("drained")).unwrap(), b"");
    setup.assert_spool_is_empty();
}

#[tokio::test]
async fn an_agent_leaves_the_rest_to_a_drainer_only_where_one_lives() {
    for killed in [false, true] {
        let mut server = Server::absent().await;
        let setup = Setup::in_pod(&server.url()).run_flags(&["--hand-over", "50ms"]);
        let mut drainer = setup.start_drainer();
        settled(&drainer).await;
        let go = setup.path("go");
        let script = format!("seq 1000; while [ ! -e {} ]; do sleep 0.01; done; exit 6", go.display());
        let mut agent = setup.start_script(&script);
        if killed {
            drainer.signal(Signal::KILL);
            let _ = drainer.output().await;
            fs::write(&go, "").unwrap();
            eventually("the end is noted", || setup.run_dir().join("exit.json").exists().then_some(())).await;
            // Longer than it would wait with a drainer.
            tokio::time::sleep(Duration::from_millis(500)).await;
            agent.assert_lives();
            server.appear().await;
            let output = agent.output().await;
            assert_eq!(output.status.code(), Some(6), "{}", stderr(&output));
            assert!(stderr(&output).contains("no drainer waits"), "{}", stderr(&output));
        } else {
            fs::write(&go, "").unwrap();
            assert_eq!(agent.output().await.status.code(), Some(6));
            drainer.assert_lives();
            server.appear().await;
            let output = drainer.output().await;
            assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        }
        let run = server.complete().await;
        assert_eq!((run.messages(), run.finish.unwrap().exit_code), (numbers(1000), Some(6)));
        setup.assert_spool_is_empty();
    }
}

#[tokio::test]
async fn a_drainer_speaks_for_an_agent_that_was_killed_in_the_middle() {
    for killed_before_it_began in [false, true] {
        let faults = Faults { cuts: vec![2, 5], ack_delay: Duration::from_millis(5), ..Faults::default() };
        let mut server = Server::start_with(faults).await;
        let setup =
            Setup::in_pod(&server.url()).flags(&["--tee", "false", "--batch-lines", "200", "--compression", "none"]);
        let agent = setup.start_script("seq 1 3000; touch half; seq 3001 6000; touch all; exec sleep 1000");
        let drainer = if killed_before_it_began { None } else { Some(setup.start_drainer()) };
        // In the middle of its output, with some of it acknowledged, some on the way, some only spooled.
        eventually("some lines are stored", || {
            server.store.lock().runs.values().next().filter(|run| run.lines.len() >= 400).map(drop)
        })
        .await;
        server.vanish();
        eventually("printed", || setup.path("all").exists().then_some(())).await;
        eventually("the last lines are spooled", || setup.is_spooled("6000\n").then_some(())).await;
        agent.signal(Signal::KILL);
        let _ = agent.output().await;
        let mut drainer = drainer.unwrap_or_else(|| setup.start_drainer());
        eventually("the end is noted", || setup.run_dir().join("exit.json").exists().then_some(())).await;
        drainer.assert_lives();
        server.appear().await;
        let output = drainer.output().await;
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));

        let run = server.complete_without_digest().await;
        assert_eq!(run.messages(), numbers(6000));
        let last = 6000;
        let gap = run.gaps.last().unwrap();
        assert_eq!((gap.reason(), gap.first_sequence, gap.last_sequence), (log_gap::Reason::AgentLost, last + 1, 0));
        let finish = run.finish.unwrap();
        assert_eq!((finish.exit_code, finish.last_sequence), (None, last));
        assert!(finish.error_message.contains("killed"), "{}", finish.error_message);
        let exit = json(&setup.run_dir().join("exit.json"));
        assert_eq!((exit["class"].as_str(), exit["exit_code"].as_i64()), (Some("agent_lost"), None));
        assert_eq!(exit["message"].as_str().unwrap(), finish.error_message);
        assert!(setup.run_dir().join("drained").exists());
        setup.assert_spool_is_empty();
    }
}

#[tokio::test]
async fn told_to_stop_both_end_and_nothing_is_lost() {
    let server = Server::start_with(Faults { ack_delay: Duration::from_millis(20), ..Faults::default() }).await;
    let setup = Setup::in_pod(&server.url()).flags(&["--batch-lines", "100", "--tee", "false"]);
    let mut drainer = setup.start_drainer();
    let agent = setup
        .start_script("trap 'seq 11 20; touch told; sleep 0.3; echo bye; exit 7' TERM; seq 10; echo $$ > pid; while :; do sleep 0.01; done");
    line_of(&setup.path("pid")).await;
    settled(&drainer).await;
    // As the kubelet does it: both at once.
    drainer.signal(Signal::TERM);
    agent.signal(Signal::TERM);
    eventually("the job was told", || setup.path("told").exists().then_some(())).await;
    drainer.assert_lives();
    assert_eq!(agent.output().await.status.code(), Some(7));
    let output = drainer.output().await;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let run = server.complete().await;
    // The shell may also tell of its child.
    let mut expected = numbers(20);
    expected.push("bye".to_owned());
    assert_eq!(run.messages().into_iter().filter(|line| !line.contains("Terminated")).collect::<Vec<_>>(), expected);
    assert_eq!(json(&setup.run_dir().join("exit.json"))["class"], "stopped");
}

/// Two signals that wait at the same time are one, so the second may have to come once more.
async fn again_until_it_ends(drainer: &mut Agent) {
    eventually("it ends", || {
        drainer.signal(Signal::TERM);
        drainer.child.try_wait().unwrap()
    })
    .await;
}

#[tokio::test]
async fn a_drainer_told_to_stop_sends_on_and_told_twice_ends() {
    let mut server = Server::absent().await;
    for twice in [false, true] {
        let setup = Setup::in_pod(&server.url()).run_flags(&["--drain-timeout", "50ms"]);
        assert!(setup.run_script("seq 10").await.status.success());
        let mut drainer = setup.start_drainer();
        settled(&drainer).await;
        drainer.signal(Signal::TERM);
        tokio::time::sleep(Duration::from_millis(300)).await;
        drainer.assert_lives();
        if twice {
            again_until_it_ends(&mut drainer).await;
            let output = drainer.output().await;
            assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
            assert!(stderr(&output).contains("10 lines are kept"), "{}", stderr(&output));
            assert!(!setup.run_dir().join("drained").exists());
        } else {
            server.appear().await;
            assert_eq!(drainer.output().await.status.code(), Some(0));
            assert_eq!(server.complete().await.messages(), numbers(10));
            server.vanish();
        }
    }
    // While the agent is there.
    let setup = Setup::in_pod(&server.url());
    let agent = setup.start_script("echo $$ > pid; exec sleep 1000");
    line_of(&setup.path("pid")).await;
    let mut drainer = setup.start_drainer();
    settled(&drainer).await;
    drainer.signal(Signal::TERM);
    tokio::time::sleep(Duration::from_millis(300)).await;
    drainer.assert_lives();
    again_until_it_ends(&mut drainer).await;
    assert_eq!(drainer.output().await.status.code(), Some(1));
    drop(agent);
}

#[tokio::test]
async fn a_drainer_does_not_wait_for_an_agent_that_could_not_begin() {
    let server = Server::start().await;
    let setup = Setup::in_pod(&server.url()).run_flags(&["--mask-file", "/no/such/file", "--exit-file", "told"]);
    let drainer = setup.start_drainer();
    settled(&drainer).await;
    let output = setup.run_script("touch begun").await;
    assert_eq!(output.status.code(), Some(125));
    assert!(!setup.path("begun").exists());
    let output = drainer.output().await;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let told = json(&setup.path("told"));
    assert_eq!((told["class"].as_str(), told["exit_code"].as_i64()), (Some("infrastructure"), Some(125)));
    assert!(told["message"].as_str().unwrap().contains("/no/such/file"), "{told}");
    assert!(!setup.run_dir().join("exit.json").exists());
    assert!(server.store.lock().runs.is_empty());
}

#[tokio::test]
async fn where_nothing_can_be_watched_it_is_looked_by_the_clock() {
    let server = Server::start().await;
    let script = "echo 0 > /proc/sys/user/max_inotify_instances && exec \"$@\"";
    let drainer_setup = Setup::in_pod(&server.url());
    let run_dir = drainer_setup.run_dir().display().to_string();
    let spool = drainer_setup.spool().display().to_string();
    let mut drainer = container::in_namespace(&["-U", "-r"])
        .args(["sh", "-c", script, "sh", BINARY, "drain", "--wait", "--run-dir", &run_dir, "--spool-dir", &spool])
        .args(["--task-id", "task", "--worker-id", "worker", "--log-server", &server.url()])
        .env("RUST_LOG", "debug")
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let output = drainer_setup.run_script("echo a; exit 2").await;
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    let status = eventually("the drainer ends", || drainer.try_wait().unwrap()).await;
    let output = drainer.wait_with_output().unwrap();
    assert_eq!(status.code(), Some(0), "{}", stderr(&output));
    assert!(stderr(&output).contains("cannot be watched"), "{}", stderr(&output));
}

#[tokio::test]
async fn the_exit_file_is_written_in_place_and_short() {
    let server = Server::start().await;
    let long = format!("/no/such/{}", "ü".repeat(3000));
    for (job, class, code) in [
        (vec!["true"], "success", 0),
        (vec!["sh", "-c", "exit 3"], "exited", 3),
        (vec!["no-such-program"], "image", 127),
        (vec![long.as_str()], "image", 126),
        (vec!["/"], "image", 126),
    ] {
        let setup = Setup::in_pod(&server.url()).run_flags(&["--exit-file", "told"]);
        // As the kubelet makes it: it is there, and mounted, so nothing can take its place.
        fs::write(setup.path("told"), "x".repeat(10_000)).unwrap();
        fs::set_permissions(setup.path("told"), fs::Permissions::from_mode(0o666)).unwrap();
        let before = fs::metadata(setup.path("told")).unwrap();
        let output = setup.start(&job).output().await;
        assert_eq!(output.status.code(), Some(code), "{}", stderr(&output));
        let after = fs::metadata(setup.path("told")).unwrap();
        assert_eq!((after.ino(), after.mode()), (before.ino(), before.mode()));
        assert!(after.len() <= 1024);
        let (told, exit) = (json(&setup.path("told")), json(&setup.run_dir().join("exit.json")));
        assert_eq!((told["class"].as_str(), told["exit_code"].as_i64()), (Some(class), Some(code.into())), "{told}");
        assert!(after.len() > 1000 || told == exit, "{told}");
        let message = told["message"].as_str().unwrap();
        assert!(class != "image" || message.contains(&job[0].chars().take(100).collect::<String>()), "{message}");
        // A container that is started once more says the same, with its own file.
        fs::write(setup.path("told"), "").unwrap();
        let again = setup.start(&job).output().await;
        assert_eq!(again.status.code(), Some(code), "{}", stderr(&again));
        assert_eq!(json(&setup.path("told")), told);
    }
}

/// Otherwise its end looks like that of an agent that never began the job, which is then begun again.
#[tokio::test]
async fn a_container_that_is_started_again_tells_that_its_job_is_lost() {
    let server = Server::start().await;
    let setup = Setup::in_pod(&server.url()).run_flags(&["--exit-file", "told"]);
    let agent = setup.start_script("echo $$ > pid; while :; do sleep 0.01; done");
    line_of(&setup.path("pid")).await;
    agent.signal(Signal::KILL);
    agent.output().await;
    let again = setup.start(["true"]).output().await;
    assert_eq!(again.status.code(), Some(125), "{}", stderr(&again));
    let told = json(&setup.path("told"));
    assert_eq!((told["class"].as_str(), told["exit_code"].as_i64()), (Some("agent_lost"), None), "{told}");
}

#[tokio::test]
async fn an_exit_file_that_cannot_be_written_changes_nothing() {
    let server = Server::start().await;
    let setup = Setup::in_pod(&server.url()).run_flags(&["--exit-file", "no/such/file"]);
    let output = setup.run_script("echo a; exit 3").await;
    assert_eq!(output.status.code(), Some(3));
    assert!(stderr(&output).contains("no/such/file") && stderr(&output).contains("--exit-file"), "{}", stderr(&output));
    assert_eq!(server.complete().await.messages(), ["a"]);
}

#[tokio::test]
async fn the_grace_period_holds_while_the_log_server_is_away() {
    let mut server = Server::absent().await;
    let setup =
        Setup::in_pod(&server.url()).run_flags(&["--grace", "3s", "--drain-timeout", "1h", "--exit-file", "told"]);
    let agent = setup.start_script("trap '' TERM; seq 100; echo $$ > pid; while :; do sleep 0.01; done");
    line_of(&setup.path("pid")).await;
    let mut drainer = setup.start_drainer();
    settled(&drainer).await;
    let start = Instant::now();
    drainer.signal(Signal::TERM);
    agent.signal(Signal::TERM);
    let output = agent.output().await;
    let took = start.elapsed();
    assert_eq!(output.status.code(), Some(137), "{}", stderr(&output));
    // Not after the hour that was allowed.
    assert!(took >= Duration::from_millis(2400), "{took:?}");
    assert_eq!(json(&setup.path("told"))["class"], "stopped");
    drainer.assert_lives();
    server.appear().await;
    assert_eq!(drainer.output().await.status.code(), Some(0));
    assert_eq!(server.complete().await.messages(), numbers(100));
}

#[tokio::test]
async fn what_a_stopped_job_leaves_behind_does_not_use_up_the_grace_period() {
    let server = Server::start().await;
    let setup = Setup::in_pod(&server.url()).run_flags(&["--grace", "3s", "--linger", "1h"]);
    let agent = setup.start_script(
        "trap 'exit 4' TERM; setsid sh -c 'trap \"\" TERM; echo $$ > away; exec sleep 1000' & echo a; echo $$ > pid
         while :; do sleep 0.01; done",
    );
    line_of(&setup.path("away")).await;
    line_of(&setup.path("pid")).await;
    agent.signal(Signal::TERM);
    let output = agent.output().await;
    assert_eq!(output.status.code(), Some(4), "{}", stderr(&output));
    assert_eq!(server.complete().await.messages()[0], "a");
}

#[tokio::test]
async fn what_image_and_event_say_of_telemetry_is_the_jobs() {
    let server = Server::start().await;
    let setup = Setup::in_pod(&server.url())
        .env("OTTO_AGENT_ENV", "")
        .env("RUST_LOG", "this is [no filter")
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9");
    let output = setup.run_script("echo $RUST_LOG; echo $OTEL_EXPORTER_OTLP_ENDPOINT; env | grep -c OTTO_AGENT").await;
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "this is [no filter\nhttp://127.0.0.1:9\n0\n",
        "{}",
        stderr(&output)
    );
}

#[tokio::test]
async fn the_job_keeps_its_umask_and_gains_privileges_only_where_it_may() {
    let server = Server::start().await;
    for (flags, expected) in
        [(&[][..], "0027\nNoNewPrivs:\t1\n"), (&["--allow-privilege-escalation"][..], "0027\nNoNewPrivs:\t0\n")]
    {
        let script = ["sh", "-c", "umask 027; exec \"$@\"", "sh"];
        let setup = Setup::in_pod(&server.url()).wrapper(&script).run_flags(flags);
        let output = setup.run_script("umask; grep NoNewPrivs /proc/self/status").await;
        assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "{}", stderr(&output));
    }
}

#[tokio::test]
async fn a_drainer_reaps_and_hears_as_the_first_process_of_its_container() {
    let server = Server::start().await;
    let setup = Setup::in_pod(&server.url()).wrapper(&container::first_process());
    let drainer = setup.start_drainer();
    let inside = drainer.inside().await;
    eventually("it listens", || {
        let status = fs::read_to_string(format!("/proc/{}/status", inside.as_raw_nonzero())).ok()?;
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:\t"))?;
        (u64::from_str_radix(caught, 16).ok()? & (1 << (Signal::TERM.as_raw() - 1)) != 0).then_some(())
    })
    .await;
    // What somebody runs in its container (kubectl debug) leaves orphans, which become its children.
    container::enter(inside, "sh -c 'sleep 0.2' & exit 0");
    let children = || {
        let pid = inside.as_raw_nonzero();
        fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap()
    };
    eventually("orphans are reaped", || children().trim().is_empty().then_some(())).await;
    kill_process(inside, Signal::TERM).unwrap();
    assert_eq!(drainer.output().await.status.code(), Some(0));
}

/// The runtime stops a container by the signal that its image names; the job is told as ever.
#[tokio::test]
async fn whatever_signal_the_image_names_stops_the_job() {
    for signal in ["QUIT", "USR1", "WINCH", "37", "TERM"] {
        let server = Server::start().await;
        let setup = Setup::in_pod(&server.url()).run_flags(&["--any-signal-stops"]);
        let agent = setup.start_script("trap 'exit 4' TERM; echo $$ > pid; while :; do sleep 0.01; done");
        line_of(&setup.path("pid")).await;
        let pid = agent.pid.as_raw_nonzero().to_string();
        assert!(Command::new("kill").args(["-s", signal, &pid]).status().unwrap().success());
        let output = agent.output().await;
        assert_eq!(output.status.code(), Some(4), "{signal}: {}", stderr(&output));
        let exit = json(&setup.run_dir().join("exit.json"));
        assert_eq!(exit["class"], "stopped", "{signal}: {exit}");
        server.complete().await;
    }
}

/// Whoever reads the copy of the output keeps neither the log nor the job's end waiting.
#[tokio::test]
async fn a_slow_reader_of_the_copy_holds_up_nothing() {
    let server = Server::start().await;
    let setup = Setup::in_pod(&server.url());
    let mut agent = setup.start_script("seq 1 100000");
    // A little again and again: never nothing for long.
    let reader = agent.trickle();
    let began = Instant::now();
    eventually("the end is noted", || setup.run_dir().join("exit.json").exists().then_some(())).await;
    let run = server.complete().await;
    assert_eq!(run.lines.len(), 100_000);
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    assert_eq!(agent.ended().await.code(), Some(0));
    reader.abort();
}

//! From the job's start to its end: environment, exit codes, signals, what it leaves behind.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::agent::{Setup, eventually, line_of, lives, stderr};
use crate::server::Server;

#[tokio::test]
async fn exit_codes_are_the_jobs() {
    let server = Server::start().await;
    for (script, code) in
        [("exit 0", 0), ("exit 3", 3), ("exit 255", 255), ("kill -TERM $$", 143), ("kill -KILL $$", 137)]
    {
        let setup = Setup::new(&server.url());
        let output = setup.run_script(script).await;
        assert_eq!(output.status.code(), Some(code), "{script}: {}", stderr(&output));
        let state = server.store.lock();
        let finish = state.runs.values().filter_map(|run| run.finish.as_ref()).find(|f| f.exit_code == Some(code));
        assert_eq!(finish.unwrap().signal, (code > 128 && code < 255).then_some(code - 128));
    }
}

#[tokio::test]
async fn a_program_that_cannot_be_run_is_named() {
    let server = Server::start().await;
    let setup = Setup::new(&server.url());
    std::fs::write(setup.path("a-text"), "no program").unwrap();
    // By another process: what a fork elsewhere has open for writing cannot be run.
    let make = "echo '#!/no/such/interpreter' > a-script && chmod 755 a-script";
    let made = std::process::Command::new("sh").args(["-c", make]).current_dir(setup.dir.path()).status().unwrap();
    assert!(made.success());
    for (program, code, words) in [
        ("no-such-program", 127, "is not in PATH"),
        ("./no/such", 127, "does not exist"),
        ("./a-text", 126, "cannot be run"),
        ("./a-script", 126, "interpreter"),
        ("/", 126, "cannot be run"),
    ] {
        let output = setup.start([program]).output().await;
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{program}: {text}");
        assert!(text.contains(words) && text.contains(program), "{program}: {text}");
        let state = server.store.lock();
        let told = state.runs.values().filter_map(|run| run.finish.as_ref());
        assert!(told.clone().any(|finish| finish.error_message.contains(words)), "{program}");
    }
    // By PATH, which may also name what nobody may look into, or what is none.
    let path = setup.path("a-text").join("x").display().to_string();
    let path = format!("/proc/1/cwd/x:{path}:{}:/bin:/usr/bin", setup.dir.path().display());
    let setup = setup.env("PATH", &path);
    for (program, code, words) in [
        ("no-such-program", 127, "is not in PATH"),
        ("a-text", 126, "cannot be run"),
        ("a-script", 126, "cannot be run"),
    ] {
        let output = setup.start([program]).output().await;
        assert_eq!(output.status.code(), Some(code), "{program}: {}", stderr(&output));
        assert!(stderr(&output).contains(words), "{program}: {}", stderr(&output));
    }
}

#[tokio::test]
async fn the_jobs_environment() {
    let server = Server::start().await;
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let setup = Setup::new(&server.url())
        .env("OTTO_BATCH_DELAY", "2ms")
        .env("OTTO_JOB_REASON", "why")
        .env("OTTO_AGENT_ENV", "RUST_LOG,OTEL_X")
        .env("OTEL_X", "y")
        .env("RUST_LOG", "warn")
        .env("TRACEPARENT", trace)
        .env("KEPT", "1");
    let output = setup
        .run_script("env | grep -E 'OTTO_|TRACEPARENT|KEPT|OTEL_|RUST_LOG' | grep -v OTTO_JOB_RUN_ID | sort; [ ${#OTTO_JOB_RUN_ID} = 36 ] || echo no run id; grep NoNewPrivs /proc/self/status")
        .await;
    let text = String::from_utf8(output.stdout).unwrap();
    let expected = format!(
        "KEPT=1\nOTTO_JOB_REASON=why\nOTTO_JOB_TASK_ID=task\nOTTO_JOB_WORKER_ID=worker\nTRACEPARENT={trace}\nNoNewPrivs:\t1\n"
    );
    assert_eq!(text, expected);
}

#[tokio::test]
async fn signals_are_passed_on_to_the_group() {
    let server = Server::start().await;
    let setup = Setup::new(&server.url());
    let agent = setup.start_script(
        "for s in HUP INT QUIT USR1 USR2 WINCH; do trap \"echo got $s\" $s; done; trap 'echo got TERM; exit 9' TERM
         echo $$ > pid; while :; do sleep 0.01; done",
    );
    line_of(&setup.path("pid")).await;
    let seen = |what: &str| {
        let state = server.store.lock();
        state.runs.values().next().is_some_and(|run| run.messages().contains(&what.to_owned()))
    };
    for (signal, name) in [
        (Signal::HUP, "HUP"),
        (Signal::INT, "INT"),
        (Signal::QUIT, "QUIT"),
        (Signal::USR1, "USR1"),
        (Signal::USR2, "USR2"),
        (Signal::WINCH, "WINCH"),
        (Signal::TERM, "TERM"),
    ] {
        agent.signal(signal);
        eventually(&format!("SIG{name}"), || seen(&format!("got {name}")).then_some(())).await;
    }
    assert_eq!(agent.output().await.status.code(), Some(9));
}

#[tokio::test]
async fn a_deaf_job_is_killed_before_the_grace_period_ends() {
    let server = Server::start().await;
    let setup = Setup::new(&server.url()).flags(&["--grace", "1s"]);
    let agent =
        setup.start_script("trap '' TERM; sleep 100 & echo $! > child; echo last words; echo $$ > pid; wait; wait");
    let child = line_of(&setup.path("child")).await;
    line_of(&setup.path("pid")).await;
    let start = Instant::now();
    agent.signal(Signal::TERM);
    let output = agent.output().await;
    assert_eq!(output.status.code(), Some(137), "{}", stderr(&output));
    assert!(start.elapsed() >= Duration::from_millis(700), "{:?}", start.elapsed());
    assert!(!lives(&child));
    assert_eq!(server.complete().await.messages(), ["last words"]);
}

#[tokio::test]
async fn two_interrupts_end_the_job_at_once() {
    let setup = Setup::without_server().flags(&["--grace", "1h"]);
    let agent = setup.start_script("trap 'echo x > first' INT; echo $$ > pid; while :; do sleep 0.01; done");
    line_of(&setup.path("pid")).await;
    agent.signal(Signal::INT);
    // Two that wait at the same time are one.
    line_of(&setup.path("first")).await;
    agent.signal(Signal::INT);
    assert_eq!(agent.output().await.status.code(), Some(137));
}

#[tokio::test]
async fn the_time_limit() {
    for limit in ["300ms", "3s", "30s"] {
        let server = Server::start().await;
        let setup = Setup::new(&server.url()).flags(&["--timeout", limit, "--grace", "10s"]);
        let script = "trap 'echo stopping; exit 7' TERM; : > ready; while :; do sleep 0.01; done";
        let output = setup.run_script(script).await;
        // The time may be up before the shell listens.
        if !setup.path("ready").exists() {
            continue;
        }
        assert_eq!(output.status.code(), Some(7), "{}", stderr(&output));
        assert!(stderr(&output).contains("--timeout"), "{}", stderr(&output));
        // The shell may also tell of its child.
        assert!(server.complete().await.messages().contains(&"stopping".to_owned()));
        return;
    }
    panic!("the job never got to its trap");
}

#[tokio::test]
async fn a_daemon_that_keeps_the_output_open_is_waited_for_and_killed() {
    let server = Server::start().await;
    let setup = Setup::new(&server.url()).flags(&["--linger", "300ms"]);
    let agent = setup.start_script(
        "sleep 100 & echo $! > in-group; setsid sh -c 'echo $$ > away; exec sleep 100' &
         while [ ! -s away ]; do sleep 0.01; done; echo done; exit 4",
    );
    let (in_group, away) = (line_of(&setup.path("in-group")).await, line_of(&setup.path("away")).await);
    let output = agent.output().await;
    assert_eq!(output.status.code(), Some(4), "{}", stderr(&output));
    assert!(!lives(&in_group) && !lives(&away));
    assert_eq!(server.complete().await.messages(), ["done"]);
}

#[tokio::test]
async fn orphans_are_reaped_while_the_job_runs() {
    let setup = Setup::without_server();
    let agent = setup.start_script(
        "sh -c 'sh -c \"echo \\$\\$ > orphan; exec sleep 0.1\" & exit'; while [ ! -e go ]; do sleep 0.01; done",
    );
    let orphan = line_of(&setup.path("orphan")).await;
    eventually("it is reaped, not a zombie", || {
        (!std::path::Path::new(&format!("/proc/{orphan}")).exists()).then_some(())
    })
    .await;
    std::fs::write(setup.path("go"), "").unwrap();
    assert!(agent.output().await.status.success());
}

#[tokio::test]
async fn wrong_settings_are_named() {
    for (flags, words) in [
        (&["--log-server", "not a url"][..], "--log-server"),
        (&["--spool-bytes", "10"], "1MiB"),
        (&["--max-line-bytes", "2MiB"], "--max-line-bytes"),
        (&["--on-full", "explode"], "block"),
        (&["--timeout", "soon"], "--timeout"),
        (&["--task-id", ""], "--task-id"),
        (&["--mask-file", "/no/such/file"], "/no/such/file"),
        (&["--stdout-level", "loud"], "warn"),
    ] {
        let output = Setup::without_server().flags(flags).run_script("touch started").await;
        let text = stderr(&output);
        assert!(matches!(output.status.code(), Some(2 | 125)), "{flags:?}: {text}");
        assert!(text.contains(words), "{flags:?}: {text}");
    }
    let setup = Setup::without_server();
    std::fs::write(setup.spool(), "a file").unwrap();
    let output = setup.run_script("touch started").await;
    assert!(stderr(&output).contains("--spool-dir"), "{}", stderr(&output));
    assert!(!setup.path("started").exists());
    assert_eq!(Setup::without_server().drain().await.status.code(), Some(125));
}

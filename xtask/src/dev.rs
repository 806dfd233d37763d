//! `cargo xtask dev`: the whole system on this machine, and a demo event through it.

mod children;

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use std::{fs, thread};

use anyhow::{Context, bail};

use crate::interrupt::Interrupt;
use crate::{tools, workspace};
use children::{Child, end_workers};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Ends with the demo; exit code 0 only if every line of it is stored.
    #[arg(long)]
    once: bool,
    /// Runs the optimised build.
    #[arg(long)]
    release: bool,
    /// Where it keeps its data.
    #[arg(long, default_value = ".otto/dev")]
    dir: PathBuf,
}

/// What the demo prints: `--once` compares with it.
const DEMO_LINES: u64 = 100;
const READY_WITHIN: Duration = Duration::from_secs(60);

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let interrupt = Interrupt::install()?;
    let redis = tools::ensure_packages(&[tools::REDIS, tools::REDIS_CLI]);
    build(options.release)?;
    let dir = workspace::root().join(&options.dir);
    fs::create_dir_all(&dir)?;
    let bin = workspace::target().join(if options.release { "release" } else { "debug" });

    // Ended in the opposite order by their destructors, whatever way this function is left.
    let (_redis, redis_port) = match redis {
        Ok(()) => {
            let port = free_port(6379)?;
            (Some(start_redis(&dir, port, &interrupt)?), Some(port))
        }
        Err(why) => {
            eprintln!(
                "xtask: no Redis: {why:#}\nxtask: going on with the embedded task store; events come by gRPC only"
            );
            (None, None)
        }
    };
    let logs = start_log_ingest(&dir, &bin, &interrupt)?;
    let scaler = start_scaler(&dir, &bin, redis_port, &logs.grpc, &interrupt)?;
    let workers = WorkersOf(dir.join("scaler/runs"));

    let task = format!("demo-{}", std::process::id());
    let otto = |arguments: &[&str]| {
        let mut command = Command::new(bin.join("otto"));
        command
            .args(["--scaler", &format!("http://{}", scaler.grpc), "--log-server", &format!("http://{}", logs.grpc)])
            .args(arguments);
        command
    };
    let demo = bin.join("otto").display().to_string();
    let demo_command =
        serde_json::to_string(&[demo.as_str(), "demo", "--lines", &DEMO_LINES.to_string(), "--rate", "50"])?;
    print_screen(&logs, &scaler, redis_port, &task);
    match redis_port {
        Some(port) => {
            let fields = ["type", "scale_up", "pod_count", "1", "task_id", &task, "command", &demo_command];
            let mut add = Command::new("redis-cli");
            add.args(["-p", &port.to_string(), "XADD", "otto:scale:events", "*"]).args(fields);
            tools::output(&mut add)?;
        }
        None => {
            let lines = DEMO_LINES.to_string();
            let submit = ["submit", "--task-id", &task, "--", &demo, "demo", "--lines", &lines, "--rate", "50"];
            tools::output(&mut otto(&submit))?;
        }
    }
    let mut follow = otto(&["logs", &task, "-f"]).spawn().context("starting otto")?;
    let followed = interrupt.wait_for(&mut follow)?;
    let result = match followed {
        None => Ok(()),
        Some(status) if options.once => check_demo(status, &mut otto(&["logs", &task, "--raw"])),
        Some(status) => {
            if !status.success() {
                eprintln!("xtask: following the demo ended with {status}");
            }
            println!("\nThe demo has ended; the system goes on. Ctrl-C ends everything.");
            interrupt.wait();
            Ok(())
        }
    };
    eprintln!("xtask: ending everything");
    drop(workers);
    scaler.process.end()?;
    logs.process.end()?;
    result
}

/// Every worker that still runs is ended with this: by design they outlive the scaler.
struct WorkersOf(PathBuf);

impl Drop for WorkersOf {
    fn drop(&mut self) {
        end_workers(&self.0);
    }
}

fn check_demo(status: std::process::ExitStatus, raw: &mut Command) -> anyhow::Result<()> {
    if !status.success() {
        bail!("the demo's log is not complete: otto logs ended with {status}");
    }
    let stored = tools::output(raw)?.lines().count() as u64;
    if stored != DEMO_LINES {
        bail!("the demo printed {DEMO_LINES} lines, and {stored} are stored");
    }
    println!("the demo printed {DEMO_LINES} lines, and all are stored");
    Ok(())
}

fn build(release: bool) -> anyhow::Result<()> {
    let mut build = workspace::cargo();
    build.args(["build", "--quiet", "--locked", "--bins", "-p", "otto-scaler", "-p", "otto-worker"]);
    build.args(["-p", "otto-log-ingest", "-p", "otto-cli"]);
    if release {
        build.arg("--release");
    }
    eprintln!("xtask: building");
    tools::run(&mut build)
}

/// A program that tells its addresses in a file once it serves.
struct Service {
    process: Child,
    grpc: String,
    second: String,
}

fn start_redis(dir: &Path, port: u16, interrupt: &Interrupt) -> anyhow::Result<Child> {
    let data = dir.join("redis");
    fs::create_dir_all(&data)?;
    let port = port.to_string();
    let mut command = Command::new("redis-server");
    command.args(["--port", &port, "--bind", "127.0.0.1", "--appendonly", "yes", "--save", "", "--daemonize", "no"]);
    command.arg("--dir").arg(&data);
    let mut child = Child::start("redis-server", &mut command, &dir.join("redis.log"))?;
    wait_until("redis-server answers", &mut child, interrupt, || {
        let mut ping = Command::new("redis-cli");
        let answer = ping.args(["-p", &port, "PING"]).stderr(Stdio::null()).output().ok()?;
        answer.stdout.starts_with(b"PONG").then_some(())
    })?;
    Ok(child)
}

fn start_log_ingest(dir: &Path, bin: &Path, interrupt: &Interrupt) -> anyhow::Result<Service> {
    let mut command = Command::new(bin.join("otto-log-ingest"));
    command.args(["--grpc-addr", &free_address(50051)?, "--http-addr", &free_address(8080)?]);
    command.arg("--data-dir").arg(dir.join("logs"));
    start_service("otto-log-ingest", command, dir, "http_addr", interrupt)
}

fn start_scaler(
    dir: &Path,
    bin: &Path,
    redis_port: Option<u16>,
    log_server: &str,
    interrupt: &Interrupt,
) -> anyhow::Result<Service> {
    let mut command = Command::new(bin.join("otto-scaler"));
    command.args(["--driver", "process", "--log-server", &format!("http://{log_server}")]);
    command.args(["--grpc-addr", &free_address(9090)?, "--admin-addr", &free_address(9091)?]);
    command.arg("--data-dir").arg(dir.join("scaler"));
    if let Some(port) = redis_port {
        command.args(["--redis-url", &format!("redis://127.0.0.1:{port}")]);
    }
    start_service("otto-scaler", command, dir, "admin_addr", interrupt)
}

fn start_service(
    name: &'static str,
    mut command: Command,
    dir: &Path,
    second: &str,
    interrupt: &Interrupt,
) -> anyhow::Result<Service> {
    let ready = dir.join(format!("{name}.ready"));
    if ready.exists() {
        fs::remove_file(&ready)?;
    }
    command.arg("--ready-file").arg(&ready);
    let mut process = Child::start(name, &mut command, &dir.join(format!("{name}.log")))?;
    let text = wait_until(&format!("{name} serves"), &mut process, interrupt, || fs::read(&ready).ok())?;
    let addresses: serde_json::Value = serde_json::from_slice(&text)?;
    let address = |key: &str| Some(addresses.get(key)?.as_str()?.to_owned());
    let (Some(grpc), Some(second)) = (address("grpc_addr"), address(second)) else {
        bail!("{name} tells no addresses in {}", ready.display());
    };
    Ok(Service { process, grpc, second })
}

fn wait_until<T>(
    what: &str,
    child: &mut Child,
    interrupt: &Interrupt,
    mut probe: impl FnMut() -> Option<T>,
) -> anyhow::Result<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = probe() {
            return Ok(value);
        }
        child.check_running()?;
        if interrupt.is_requested() {
            bail!("interrupted");
        }
        if start.elapsed() > READY_WITHIN {
            bail!("not within {READY_WITHIN:?}: {what}; see {}", child.log().display());
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// `preferred` if nobody has it, else a free one.
fn free_port(preferred: u16) -> anyhow::Result<u16> {
    let listener = TcpListener::bind(("127.0.0.1", preferred)).or_else(|_| TcpListener::bind("127.0.0.1:0"))?;
    Ok(listener.local_addr()?.port())
}

/// The preferred port, or the program's own choice.
fn free_address(preferred: u16) -> anyhow::Result<String> {
    let port = if free_port(preferred)? == preferred { preferred } else { 0 };
    Ok(SocketAddr::from(([127, 0, 0, 1], port)).to_string())
}

fn print_screen(logs: &Service, scaler: &Service, redis_port: Option<u16>, task: &str) {
    println!("Ottoscaler runs.");
    println!("  web page      http://{}/", logs.second);
    println!("  log server    {} (gRPC; grpcurl -plaintext {} list)", logs.grpc, logs.grpc);
    println!("  scaler        {} (gRPC), http://{}/metrics", scaler.grpc, scaler.second);
    if let Some(port) = redis_port {
        println!("  Redis         127.0.0.1:{port}");
        println!("\nTry, in another terminal:");
        println!(
            "  redis-cli -p {port} XADD otto:scale:events '*' type scale_up pod_count 3 task_id hello \\\n    command '[\"sh\",\"-c\",\"for i in 1 2 3 4 5; do echo hello $i; sleep 1; done\"]'"
        );
    }
    println!("  cargo run -q -p otto-cli -- --scaler http://{} --log-server http://{} tasks", scaler.grpc, logs.grpc);
    println!("\nThe log of {task}, live (Ctrl-C ends everything):\n");
}

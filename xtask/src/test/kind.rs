//! `cargo xtask test --kind`: the tests in a cluster with real Pods, in one of their own.

use std::fs;

use anyhow::Context;

use crate::images::{self, Profile};
use crate::interrupt::Interrupt;
use crate::up::{self, Up};
use crate::workspace;

/// Which tests, and where.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Runs the tests with real Pods instead, in a kind cluster that is made for them and deleted afterwards.
    #[arg(long)]
    pub(crate) kind: bool,
    /// With --kind: the cluster's node image.
    #[arg(long, value_name = "IMAGE", requires = "kind")]
    image: Option<String>,
    /// With --kind: how the programs are built.
    #[arg(long, value_name = "PROFILE", default_value = "quick", requires = "kind")]
    profile: Profile,
    /// With --kind: lets the cluster be, for looking at it and for further runs; `cargo xtask down` deletes it.
    #[arg(long, requires = "kind")]
    keep: bool,
}

const NAME: &str = "otto-test";
const OVERLAY: &str = "crates/otto-testkit/tests/kind/overlay";
/// What jobs of the tests run: an image with a shell, and nothing of ours.
const JOB_IMAGE: &str = "busybox:1.37";

pub(super) fn run(options: &Options, arguments: &[String]) -> anyhow::Result<()> {
    images::check_system(std::env::consts::OS)?;
    let interrupt = Interrupt::install()?;
    let cluster = up::Options {
        image: options.image.clone(),
        name: NAME.to_owned(),
        profile: options.profile,
        redis_image: up::REDIS_IMAGE.to_owned(),
    };
    let result = bring_and_test(&cluster, arguments, &interrupt);
    if options.keep {
        eprintln!("xtask: the cluster stays: cargo xtask down --name {NAME} deletes it");
        return result;
    }
    let cluster = up::Cluster::new(NAME)?;
    if result.is_err() && !interrupt.is_requested() && cluster.exists()? {
        let logs = workspace::target().join("kind-logs");
        match cluster.export_logs(&logs) {
            Ok(()) => eprintln!("xtask: logs of the cluster are in {}", logs.display()),
            Err(error) => eprintln!("xtask: logs of the cluster cannot be had: {error:#}"),
        }
    }
    eprintln!("xtask: deleting the cluster {NAME}");
    let deleted = cluster.delete();
    result?;
    deleted.map(drop)
}

fn bring_and_test(options: &up::Options, arguments: &[String], interrupt: &Interrupt) -> anyhow::Result<()> {
    let job_image = up::ensure_busybox(JOB_IMAGE, interrupt)?;
    let up = up::bring(options, OVERLAY, interrupt)?;
    up.cluster.load(&[&job_image], interrupt)?;
    let facts = up.cluster.dir().join("tests.json");
    fs::write(&facts, serde_json::to_vec_pretty(&told(&up, &job_image))?).context("tests.json")?;
    let mut test = workspace::cargo();
    test.args(["test", "--package", "otto-testkit", "--test", "kind", "--locked"]);
    // In the same Pods, one after another: some of them end the servers of all.
    test.args(["--", "--ignored", "--nocapture", "--test-threads=1"]).args(arguments);
    test.env("OTTO_KIND", std::path::absolute(&facts)?);
    interrupt.run(&mut test)
}

/// What the tests are told of the cluster.
fn told(up: &Up, job_image: &str) -> serde_json::Value {
    serde_json::json!({
        "kubeconfig": std::path::absolute(up.cluster.kubeconfig()).unwrap_or_default(),
        "token_file": std::path::absolute(&up.token_file).unwrap_or_default(),
        "scaler": format!("http://127.0.0.1:{}", up.ports.scaler),
        "logs": format!("http://127.0.0.1:{}", up.ports.log_grpc),
        "page": format!("http://127.0.0.1:{}", up.ports.log_http),
        "redis": format!("redis://127.0.0.1:{}", up.ports.redis),
        "job_image": job_image,
        "node": up.cluster.node(),
        "otto": std::path::absolute(up.binaries.join("otto")).unwrap_or_default(),
    })
}

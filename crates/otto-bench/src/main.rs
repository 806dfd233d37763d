//! Benchmarks of the whole system, each figure beside a ceiling of the same run: machines are noisy, ratios less so.
//! `cargo xtask bench` builds everything optimised and runs this. Besides it is the job of its own benchmarks.

mod entries;
mod idle;
mod job;
mod kubernetes;
mod path;
mod report;
mod start;
mod stats;
mod tail;

use std::path::PathBuf;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "Ottoscaler's benchmarks")]
struct Cli {
    #[command(subcommand)]
    bench: Bench,
    /// Folder for NAME.json.
    #[arg(long, global = true, default_value = "target/bench")]
    out: PathBuf,
}

#[derive(Subcommand)]
enum Bench {
    /// From XADD to the worker's first instruction.
    Start,
    /// One entry per message, beside a server that only acknowledges.
    Entries,
    /// A job's lines through agent and gRPC to the synced store.
    Path {
        /// Lines of 100 bytes.
        #[arg(long, default_value_t = 5_000_000)]
        lines: u64,
    },
    /// From a line's printing to its readers.
    Tail {
        /// Lines a second.
        #[arg(long, default_value_t = 10_000)]
        rate: u64,
        /// How long.
        #[arg(long, default_value_t = 15)]
        seconds: u64,
    },
    /// Resident memory of silent programs.
    Idle,
    /// Events into Pods of a real API server, beside a client that only creates Pods.
    Kubernetes(kubernetes::Scale),
    /// All of them but `kubernetes`.
    All,
    #[command(hide = true)]
    Job(job::Options),
    #[command(hide = true)]
    EchoServer,
}

fn main() -> anyhow::Result<()> {
    // Before anything else: this is the moment that the start benchmark measures.
    let begun = stats::now_nanos();
    let cli = Cli::parse();
    if let Bench::Job(options) = &cli.bench {
        return job::run(options, begun);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let out = cli.out.as_path();
        match cli.bench {
            Bench::Start => start::run(out).await,
            Bench::Entries => entries::run(out).await,
            Bench::Path { lines } => path::run(out, lines).await,
            Bench::Tail { rate, seconds } => tail::run(out, rate, seconds).await,
            Bench::Idle => idle::run(out).await,
            Bench::Kubernetes(scale) => kubernetes::run(out, scale).await,
            Bench::All => {
                start::run(out).await?;
                path::run(out, 5_000_000).await?;
                entries::run(out).await?;
                tail::run(out, 10_000, 15).await?;
                idle::run(out).await
            }
            Bench::EchoServer => entries::echo_server().await,
            Bench::Job(_) => Ok(()),
        }
    })
}

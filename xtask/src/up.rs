//! `cargo xtask up` and `down`: the whole system in a Kubernetes cluster on this machine.

mod cluster;
mod foreign;
mod overlay;
mod programs;
mod rollout;
mod why;

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::images::{self, Profile};
use crate::interrupt::Interrupt;
use crate::{docker, workspace};
pub(crate) use cluster::Cluster;
pub(crate) use foreign::busybox as ensure_busybox;

/// Redis as it is published.
pub(crate) const REDIS_IMAGE: &str = "redis:7-bookworm";

/// Where the cluster comes from, and what runs in it.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// The cluster's node image, such as kindest/node:v1.34.0 or one built here. Default: the one kind was made for. Only
    /// used when the cluster is created.
    #[arg(long, value_name = "IMAGE")]
    pub(crate) image: Option<String>,
    /// Name of the kind cluster.
    #[arg(long, value_name = "NAME", default_value = "otto-dev")]
    pub(crate) name: String,
    /// How the programs are built: `quick` builds soon, `release` is what production runs.
    #[arg(long, value_name = "PROFILE", default_value = "quick")]
    pub(crate) profile: Profile,
    /// Redis for the cluster. Where it cannot be pulled, this machine's redis-server is packed into an image.
    #[arg(long, env = "OTTO_REDIS_IMAGE", value_name = "IMAGE", default_value = REDIS_IMAGE)]
    pub(crate) redis_image: String,
}

/// Which cluster goes.
#[derive(clap::Args)]
pub(crate) struct Down {
    /// Name of the kind cluster.
    #[arg(long, value_name = "NAME", default_value = "otto-dev")]
    name: String,
}

/// What to apply, relative to the workspace.
const DEV: &str = "k8s/overlays/dev";

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let interrupt = Interrupt::install()?;
    match bring(options, DEV, &interrupt) {
        Ok(up) => {
            up.print_screen();
            Ok(())
        }
        Err(_) if interrupt.is_requested() => {
            let name = &options.name;
            bail!(
                "interrupted; what is done so far stays: `cargo xtask up --name {name}` goes on, \
                 `cargo xtask down --name {name}` removes it"
            )
        }
        Err(error) => Err(error),
    }
}

pub(crate) fn down(options: &Down) -> anyhow::Result<()> {
    docker::ensure()?;
    let cluster = Cluster::new(&options.name)?;
    if cluster.delete()? {
        println!("cluster {} is deleted, with all it stored", options.name);
    } else {
        println!("there is no cluster {}", options.name);
    }
    Ok(())
}

/// A cluster in which everything runs.
pub(crate) struct Up {
    pub(crate) cluster: Cluster,
    pub(crate) ports: cluster::Ports,
    /// File with the token that every server asks for.
    pub(crate) token_file: PathBuf,
    /// Folder of the programs that were built, `otto` among them.
    pub(crate) binaries: PathBuf,
    /// Image with `otto` in it.
    pub(crate) cli_image: String,
}

/// Brings everything up in the cluster, which is created if it is not there; what has not changed is left alone.
pub(crate) fn bring(options: &Options, overlay: &str, interrupt: &Interrupt) -> anyhow::Result<Up> {
    images::check_system(std::env::consts::OS)?;
    docker::ensure()?;
    let cluster = Cluster::new(&options.name)?;
    cluster.check_ours()?;
    let binaries = images::static_binaries(options.profile, interrupt)?;
    let ensure = |image| -> anyhow::Result<String> {
        interrupt.check()?;
        images::ensure(image, &binaries)
    };
    let built = overlay::Images {
        scaler: ensure(&images::SCALER)?,
        log_ingest: ensure(&images::LOG_INGEST)?,
        worker: ensure(&images::WORKER)?,
        cli: ensure(&images::CLI)?,
        redis: foreign::redis(&options.redis_image, interrupt)?,
    };
    if !cluster.exists()? {
        cluster.create(options.image.as_deref(), interrupt)?;
    }
    cluster.write_kubeconfig()?;
    cluster.load(&built.all(), interrupt)?;
    eprintln!("xtask: applying {overlay}");
    cluster.apply(&workspace::root().join("k8s/base/namespaces.yaml"), false, interrupt)?;
    let token_file = overlay::ensure_tokens(&cluster)?;
    rollout::let_go(&cluster)?;
    let applied = overlay::write(cluster.dir(), overlay, &built)?;
    cluster.apply(&applied, true, interrupt)?;
    rollout::wait(&cluster, interrupt)?;
    overlay::withdraw_token(&cluster)?;
    Ok(Up { ports: cluster.ports()?, cluster, token_file, binaries, cli_image: built.cli })
}

impl Up {
    fn print_screen(&self) {
        let Self { cluster, ports, .. } = self;
        let kubectl = "kubectl -n ottoscaler";
        let kubeconfig = shown(&cluster.kubeconfig());
        let token = shown(&self.token_file);
        let otto = shown(&self.binaries.join("otto"));
        let (scaler, grpc, http, redis) = (ports.scaler, ports.log_grpc, ports.log_http, ports.redis);
        println!(
            r#"
Everything runs in the kind cluster {name}. In a shell:

  export KUBECONFIG={kubeconfig}
  export OTTO_AUTH_TOKEN_FILE={token}   # every server asks for this token
  export OTTO_SCALER=http://127.0.0.1:{scaler} OTTO_LOG_SERVER=http://127.0.0.1:{grpc}

An event on the stream (Redis is at 127.0.0.1:{redis}), and its Pods:

  {kubectl} exec otto-redis-0 -- redis-cli XADD otto:scale:events '*' type scale_up pod_count 3 task_id hello
  kubectl -n ottoscaler-workers get pods --watch

The log page: http://127.0.0.1:{http}/ (it asks for the token: cat {token})

The command line:

  {otto} logs hello -f
  {otto} submit -f --image {cli} -- /bin/otto demo --lines 20
  {otto} tasks

gRPC:

  grpcurl -plaintext -H "authorization: Bearer $(cat {token})" 127.0.0.1:{grpc} list
  grpcurl -plaintext -H "authorization: Bearer $(cat {token})" -d '{{"task_id":"up","worker_count":2}}' \
      127.0.0.1:{scaler} ottoscaler.v1.OttoscalerService/ScaleUp

`cargo xtask up` again brings what you changed; `cargo xtask down` deletes the cluster."#,
            name = cluster.name(),
            cli = self.cli_image,
        );
    }
}

/// A path as short as it can be from where people are.
fn shown(path: &Path) -> String {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    absolute.display().to_string()
}

/// Makes a folder with its parents.
fn make_dir(path: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(path).with_context(|| format!("creating {}", path.display()))
}

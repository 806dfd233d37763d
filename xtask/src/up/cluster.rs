//! A kind cluster of ours.

use std::fs;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

use super::{make_dir, programs};
use crate::interrupt::Interrupt;
use crate::{tools, workspace};

/// Ports of 127.0.0.1 that lead into the cluster.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ports {
    pub(crate) scaler: u16,
    pub(crate) log_grpc: u16,
    pub(crate) log_http: u16,
    pub(crate) redis: u16,
}

/// Ports of the node, fixed by k8s/overlays/dev/node-ports.yaml, and those of this machine if they are free.
const SCALER: (u16, u16) = (30090, 9090);
const LOG_GRPC: (u16, u16) = (30051, 50051);
const LOG_HTTP: (u16, u16) = (30080, 8080);
const REDIS: (u16, u16) = (30379, 6379);

/// A kind cluster by its name, there or not. Its folder `.otto/kind/NAME` says that it was made here.
pub(crate) struct Cluster {
    name: String,
    dir: PathBuf,
    kind: PathBuf,
    kubectl: PathBuf,
}

impl Cluster {
    /// Finds or installs what drives clusters.
    pub(crate) fn new(name: &str) -> anyhow::Result<Self> {
        let valid = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if name.is_empty() || name.len() > 40 || !name.bytes().all(valid) || name.starts_with('-') {
            bail!("--name {name:?}: accepted are 1 to 40 lower-case letters, digits and `-`, not `-` first");
        }
        Ok(Self {
            name: name.to_owned(),
            dir: workspace::root().join(".otto/kind").join(name),
            kind: programs::kind()?,
            kubectl: programs::kubectl()?,
        })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Where we keep what belongs to it.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Name of its node's container.
    pub(crate) fn node(&self) -> String {
        format!("{}-control-plane", self.name)
    }

    /// How to reach it: a file of its own, so that nobody's current context changes.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.dir.join("kubeconfig")
    }

    fn made_here(&self) -> PathBuf {
        self.dir.join("made-here")
    }

    pub(crate) fn exists(&self) -> anyhow::Result<bool> {
        let names = tools::output(Command::new(&self.kind).args(["get", "clusters", "--quiet"]))?;
        Ok(names.lines().any(|name| name == self.name))
    }

    /// # Errors
    /// If somebody else made a cluster of this name: nothing is applied to it, and it is not deleted.
    pub(crate) fn check_ours(&self) -> anyhow::Result<()> {
        if self.exists()? && !self.made_here().is_file() {
            bail!(
                "there is a kind cluster {0} that was not made by `cargo xtask up` in this folder: choose another --name, \
                 or delete it (kind delete cluster --name {0})",
                self.name
            );
        }
        Ok(())
    }

    /// Creates it; what is left of a failure or an interruption is removed.
    pub(crate) fn create(&self, image: Option<&str>, interrupt: &Interrupt) -> anyhow::Result<()> {
        make_dir(&self.dir)?;
        let config = self.dir.join("kind.yaml");
        fs::write(&config, self.config()?)?;
        fs::write(self.made_here(), "by cargo xtask up: cargo xtask down may delete the cluster\n")?;
        let mut create = Command::new(&self.kind);
        create.args(["create", "cluster", "--quiet", "--wait", "180s", "--name", &self.name]);
        create.arg("--config").arg(&config).arg("--kubeconfig").arg(self.kubeconfig());
        if let Some(image) = image {
            create.args(["--image", image]);
        }
        eprintln!("xtask: creating the kind cluster {}", self.name);
        // Out of reach of Ctrl-C: it would leave half a cluster.
        let mut child = create.process_group(0).spawn().context("starting kind")?;
        let status = interrupt.wait_for(&mut child)?;
        if status.is_some_and(|status| status.success()) {
            return Ok(());
        }
        self.delete()?;
        match image {
            _ if status.is_none() => bail!("interrupted"),
            None => {
                bail!("kind could not create the cluster. Where no registry can be reached, give a node image: --image")
            }
            Some(image) => bail!("kind could not create the cluster with the node image {image}"),
        }
    }

    fn config(&self) -> anyhow::Result<String> {
        let mut mappings = Vec::new();
        for (node, wanted) in [SCALER, LOG_GRPC, LOG_HTTP, REDIS] {
            let host = free_port(wanted)?;
            mappings.push(format!(
                "      - {{containerPort: {node}, hostPort: {host}, listenAddress: 127.0.0.1, protocol: TCP}}"
            ));
        }
        Ok(format!(
            "kind: Cluster\napiVersion: kind.x-k8s.io/v1alpha4\nnodes:\n  - role: control-plane\n    extraPortMappings:\n{}\n",
            mappings.join("\n")
        ))
    }

    /// Deletes it; false: there was none.
    ///
    /// # Errors
    /// Also if it is not ours.
    pub(crate) fn delete(&self) -> anyhow::Result<bool> {
        self.check_ours()?;
        let there = self.exists()?;
        if there {
            let mut delete = Command::new(&self.kind);
            delete.args(["delete", "cluster", "--quiet", "--name", &self.name]);
            tools::run(delete.arg("--kubeconfig").arg(self.kubeconfig()))?;
        }
        if self.dir.exists() {
            fs::remove_dir_all(&self.dir)?;
        }
        Ok(there)
    }

    /// Writes the logs of everything in it into a folder.
    pub(crate) fn export_logs(&self, dir: &Path) -> anyhow::Result<()> {
        let mut export = Command::new(&self.kind);
        tools::run(export.args(["export", "logs", "--quiet", "--name", &self.name]).arg(dir).stdout(Stdio::null()))
    }

    pub(crate) fn write_kubeconfig(&self) -> anyhow::Result<()> {
        let text = tools::output(Command::new(&self.kind).args(["get", "kubeconfig", "--name", &self.name]))?;
        write_secret(&self.kubeconfig(), &text)
    }

    /// Brings images onto the node; those it has are left out.
    pub(crate) fn load(&self, images: &[&str], interrupt: &Interrupt) -> anyhow::Result<()> {
        let mut load = Command::new(&self.kind);
        load.args(["load", "docker-image", "--quiet", "--name", &self.name]).args(images);
        eprintln!("xtask: loading images onto the node");
        interrupt.run(&mut load)
    }

    /// `kubectl` for this cluster.
    pub(crate) fn kubectl(&self) -> Command {
        let mut kubectl = Command::new(&self.kubectl);
        kubectl.arg("--kubeconfig").arg(self.kubeconfig());
        kubectl
    }

    /// What kubectl prints with `--output=json`.
    pub(crate) fn get(&self, arguments: &[&str]) -> anyhow::Result<serde_json::Value> {
        let mut get = self.kubectl();
        get.arg("get").args(arguments).arg("--output=json").stdin(Stdio::null());
        serde_json::from_str(&tools::output(&mut get)?).context("kubectl get")
    }

    /// Applies a file, or the kustomization of a folder.
    pub(crate) fn apply(&self, path: &Path, kustomize: bool, interrupt: &Interrupt) -> anyhow::Result<()> {
        let mut apply = self.kubectl();
        apply.args(["apply", "--server-side", "--force-conflicts", "--field-manager=cargo-xtask-up"]);
        apply.arg(if kustomize { "--kustomize" } else { "--filename" }).arg(path).stdout(Stdio::null());
        interrupt.run(&mut apply)
    }

    /// Where its ports are on this machine.
    pub(crate) fn ports(&self) -> anyhow::Result<Ports> {
        let port = |(node, _): (u16, u16)| -> anyhow::Result<u16> {
            let container = self.node();
            let text = tools::output(Command::new("docker").args(["port", &container, &format!("{node}/tcp")]))?;
            let port = text.lines().next().and_then(|line| line.rsplit(':').next()).and_then(|port| port.parse().ok());
            port.with_context(|| format!("docker port {container} {node}/tcp says {text:?}"))
        };
        Ok(Ports { scaler: port(SCALER)?, log_grpc: port(LOG_GRPC)?, log_http: port(LOG_HTTP)?, redis: port(REDIS)? })
    }
}

/// The port itself if it is free on 127.0.0.1, otherwise another.
fn free_port(wanted: u16) -> anyhow::Result<u16> {
    if TcpListener::bind(("127.0.0.1", wanted)).is_ok() {
        return Ok(wanted);
    }
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Writes a file that only we can read.
pub(super) fn write_secret(path: &Path, text: &str) -> anyhow::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = fs::File::options();
    let file = options.create(true).truncate(true).write(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes())).with_context(|| path.display().to_string())
}

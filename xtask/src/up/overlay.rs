//! What is applied: an overlay of k8s/ with the images that were built, and the token.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, bail};

use super::cluster::{Cluster, write_secret};
use super::make_dir;
use crate::images::hex;

/// References of the images.
pub(crate) struct Images {
    pub(crate) scaler: String,
    pub(crate) log_ingest: String,
    pub(crate) worker: String,
    pub(crate) cli: String,
    pub(crate) redis: String,
}

impl Images {
    pub(crate) fn all(&self) -> [&str; 5] {
        [&self.scaler, &self.log_ingest, &self.worker, &self.cli, &self.redis]
    }
}

/// The agent's and the demo's image are values of the scaler's environment.
const IMAGE_FIELDS: &str = "images:\n  - kind: Deployment\n    path: spec/template/spec/containers/env/value\n";

/// Writes a kustomization over `overlay` (relative to the workspace) into `dir`, which is `.otto/kind/NAME`; returns its
/// folder.
pub(crate) fn write(dir: &Path, overlay: &str, images: &Images) -> anyhow::Result<PathBuf> {
    let dir = dir.join("applied");
    make_dir(&dir)?;
    fs::write(dir.join("images.yaml"), IMAGE_FIELDS)?;
    let mut text = format!(
        "# Written by `cargo xtask up`.\napiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n\
         resources: [../../../../{overlay}]\nconfigurations: [images.yaml]\nimages:\n"
    );
    for (name, reference) in [
        ("ottoscaler/otto-scaler", &images.scaler),
        ("ottoscaler/otto-log-ingest", &images.log_ingest),
        ("ottoscaler/otto-worker", &images.worker),
        ("ottoscaler/otto", &images.cli),
        ("redis", &images.redis),
    ] {
        let (new_name, tag) =
            reference.rsplit_once(':').with_context(|| format!("the image {reference} has no tag"))?;
        text += &format!("  - {{name: {name}, newName: {new_name}, newTag: \"{tag}\"}}\n");
    }
    fs::write(dir.join("kustomization.yaml"), text)?;
    Ok(dir)
}

/// Namespaces that have the token.
const NAMESPACES: [&str; 2] = ["ottoscaler", "ottoscaler-workers"];
const SECRET: &str = "otto-token";

/// Makes sure that both namespaces have the same token, a random one if there is none; returns a file with it.
pub(crate) fn ensure_token(cluster: &Cluster) -> anyhow::Result<PathBuf> {
    let path = cluster.dir().join("token");
    let mut token = None;
    let mut missing = Vec::new();
    for namespace in NAMESPACES {
        let mut get = cluster.kubectl();
        get.args(["get", "secret", SECRET, "--namespace", namespace, "--ignore-not-found"]);
        let text = crate::tools::output(get.arg("--output=go-template={{.data.token|base64decode}}"))?;
        if text.is_empty() { missing.push(namespace) } else { token = Some(text) }
    }
    let token = match token {
        Some(token) => token,
        None => random_token()?,
    };
    for namespace in missing {
        create_secret(cluster, namespace, &token)?;
    }
    write_secret(&path, &token)?;
    Ok(path)
}

fn random_token() -> anyhow::Result<String> {
    let mut bytes = [0; 32];
    File::open("/dev/urandom").and_then(|mut random| random.read_exact(&mut bytes)).context("/dev/urandom")?;
    Ok(hex(&bytes))
}

/// By the standard input: arguments of processes are seen by everybody.
fn create_secret(cluster: &Cluster, namespace: &str, token: &str) -> anyhow::Result<()> {
    let secret = serde_json::json!({
        "apiVersion": "v1", "kind": "Secret", "type": "Opaque",
        "metadata": {"name": SECRET, "namespace": namespace},
        "stringData": {"token": token},
    });
    let mut create = cluster.kubectl();
    create.args(["create", "--filename=-"]).stdin(Stdio::piped()).stdout(Stdio::null());
    let mut child = create.spawn().context("starting kubectl")?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(secret.to_string().as_bytes())?;
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("kubectl create secret {SECRET} in {namespace} ended with {status}");
    }
    Ok(())
}

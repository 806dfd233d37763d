//! What is applied: an overlay of k8s/ with the images that were built, and the tokens.

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

const OURS: &str = "ottoscaler";
const WORKERS: &str = "ottoscaler-workers";
/// The token that is good for everything.
const TOKEN: &str = "otto-token";
/// The one that workers have, which is good for sending logs.
const WORKER_TOKEN: &str = "otto-worker-token";

/// Makes sure that there are the two tokens where they are needed, random ones if there are none; returns a file with the one
/// that is good for everything.
pub(crate) fn ensure_tokens(cluster: &Cluster) -> anyhow::Result<PathBuf> {
    ensure_token(cluster, WORKER_TOKEN, &[OURS, WORKERS])?;
    let token = ensure_token(cluster, TOKEN, &[OURS])?;
    let path = cluster.dir().join("token");
    write_secret(&path, &token)?;
    Ok(path)
}

/// Takes the token that is good for everything away from the workers' namespace, where an earlier `up` has put it. After the
/// scaler was updated: Pods of the one before mount it.
pub(crate) fn withdraw_token(cluster: &Cluster) -> anyhow::Result<()> {
    let mut delete = cluster.kubectl();
    delete.args(["delete", "secret", TOKEN, "--namespace", WORKERS, "--ignore-not-found"]);
    crate::tools::run(delete.stdout(Stdio::null()))
}

/// Makes sure that a Secret with the same token is in all these namespaces; returns the token.
fn ensure_token(cluster: &Cluster, name: &str, namespaces: &[&str]) -> anyhow::Result<String> {
    let mut token = None;
    let mut missing = Vec::new();
    for namespace in namespaces {
        let mut get = cluster.kubectl();
        get.args(["get", "secret", name, "--namespace", namespace, "--ignore-not-found"]);
        let text = crate::tools::output(get.arg("--output=go-template={{.data.token|base64decode}}"))?;
        if text.is_empty() { missing.push(namespace) } else { token = Some(text) }
    }
    let token = match token {
        Some(token) => token,
        None => random_token()?,
    };
    for namespace in missing {
        create_secret(cluster, name, namespace, &token)?;
    }
    Ok(token)
}

fn random_token() -> anyhow::Result<String> {
    let mut bytes = [0; 32];
    File::open("/dev/urandom").and_then(|mut random| random.read_exact(&mut bytes)).context("/dev/urandom")?;
    Ok(hex(&bytes))
}

/// By the standard input: arguments of processes are seen by everybody.
fn create_secret(cluster: &Cluster, name: &str, namespace: &str, token: &str) -> anyhow::Result<()> {
    let secret = serde_json::json!({
        "apiVersion": "v1", "kind": "Secret", "type": "Opaque",
        "metadata": {"name": name, "namespace": namespace},
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
        bail!("kubectl create secret {name} in {namespace} ended with {status}");
    }
    Ok(())
}

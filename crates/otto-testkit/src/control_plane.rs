//! A real Kubernetes control plane: etcd, kube-apiserver, controller manager, scheduler, and kwok for nodes and Pods.
//!
//! There are nodes, but no kubelets: Pods are scheduled, and then either kwok plays their life (namespaces of
//! [`ControlPlane::kwok_namespace`]) or the test does, status by status ([`ControlPlane::namespace`]).

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::Node;
use kube::api::PostParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use rustix::process::Signal;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::sync::OnceCell;
use tokio_rustls::TlsAcceptor;

mod audit;
mod history;
mod kept;
mod namespace;
mod pki;
mod programs;
mod webhook;

pub use audit::{AuditEvent, AuditObject, AuditStatus, AuditUser};
pub use history::PodHistory;
pub use namespace::{Namespace, scaler_rules};
pub use webhook::Webhook;

use crate::PATIENCE;
use kept::{Folder, Janitor, Kept, asset};
use pki::Pki;
use programs::ReservedPort;

const STAGES: &str = include_str!("control_plane/stages.yaml");

/// Service accounts and the user `scaler` are audited, our own programs and the test's admin are not.
const AUDIT_POLICY: &str = r#"apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- {level: Metadata, userGroups: ["system:serviceaccounts", audited]}
- {level: None}
"#;

/// Who there is, and their groups: `admin` may do all, `scaler` and `nobody` only what a test gives them. Service accounts
/// come besides.
const USERS: [(&str, &str); 6] = [
    ("admin", "system:masters"),
    ("controller-manager", "system:masters"),
    ("scheduler", "system:masters"),
    ("kwok", "system:masters"),
    ("scaler", "audited"),
    ("nobody", "audited"),
];

/// What a control plane is made of.
#[derive(Clone, Debug)]
pub struct Options {
    /// Nodes that take Pods.
    pub nodes: usize,
    /// How many Pods each of them takes.
    pub pods_per_node: usize,
    /// Whether Pods are given to nodes.
    pub scheduler: bool,
    /// Whether Pods in the namespaces of [`ControlPlane::kwok_namespace`] run and end.
    pub kwok: bool,
    /// etcd waits for its disk.
    pub durable: bool,
}

impl Default for Options {
    /// Everything on two nodes of 1,000 Pods, in memory.
    fn default() -> Self {
        Self { nodes: 2, pods_per_node: 1_000, scheduler: true, kwok: true, durable: false }
    }
}

/// A running control plane on 127.0.0.1. Ends when it is dropped, or when the process is gone.
pub struct ControlPlane {
    processes: Mutex<Processes>,
    pki: Pki,
    port: ReservedPort,
    namespaces: AtomicU32,
    folder: Folder,
    _janitor: Janitor,
}

/// In the order in which they are ended: who asks before who answers.
#[derive(Default)]
struct Processes {
    others: Vec<Kept>,
    api_server: Option<Kept>,
    _etcd: Option<Kept>,
}

impl ControlPlane {
    /// The one that all tests of a binary share, started by the first who asks. It ends with the process.
    ///
    /// # Errors
    /// When a program is missing or it does not come up.
    pub async fn shared() -> anyhow::Result<&'static Self> {
        static SHARED: OnceCell<ControlPlane> = OnceCell::const_new();
        SHARED.get_or_try_init(|| Self::start(Options::default())).await
    }

    /// Starts one and waits until it is of use.
    ///
    /// # Errors
    /// When a program is missing or it does not come up.
    pub async fn start(options: Options) -> anyhow::Result<Self> {
        // Who wins if another has chosen a provider already does not matter.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let folder = Folder::new()?;
        let root = folder.dir.path();
        let janitor = Janitor::of(root)?;
        let pki = Pki::make(root)?;
        let tokens = USERS.map(|(user, group)| format!("{},{user},{user},\"{group}\"\n", token(user))).concat();
        fs::write(root.join("tokens.csv"), tokens)?;
        fs::write(root.join("audit-policy.yaml"), AUDIT_POLICY)?;
        let port = ReservedPort::new()?;
        let etcd = programs::etcd(root, &options)?;
        let api_server = programs::api_server(root, port.port, &pki)?;
        let processes = Processes { others: Vec::new(), api_server: Some(api_server), _etcd: Some(etcd) };
        let (processes, namespaces) = (Mutex::new(processes), AtomicU32::new(0));
        let plane = Self { processes, pki, port, namespaces, folder, _janitor: janitor };
        let client = plane.client_of("admin").await?;
        plane.answering(&client).await?;
        let root = plane.folder.dir.path();
        let mut others =
            vec![programs::controller_manager(root, &plane.pki, &plane.kubeconfig("controller-manager")?)?];
        if options.scheduler {
            others.push(programs::scheduler(root, &plane.kubeconfig("scheduler")?)?);
        }
        if options.kwok {
            others.push(programs::kwok(root, &plane.kubeconfig("kwok")?)?);
        }
        plane.locked().others = others;
        make_nodes(&client, &options).await?;
        // The controller manager runs when the namespace `default` has its service account.
        namespace::has_service_account(&plane, &client, "default").await?;
        Ok(plane)
    }

    /// Waits until the API server says that it is ready.
    async fn answering(&self, client: &Client) -> anyhow::Result<()> {
        let start = Instant::now();
        loop {
            let request = http::Request::get("/readyz").body(Vec::new())?;
            let error = match client.request_text(request).await {
                Ok(_) => return Ok(()),
                Err(error) => error,
            };
            self.check_running()?;
            if start.elapsed() > PATIENCE {
                let log = self.locked().api_server.as_ref().map(Kept::log_tail).unwrap_or_default();
                bail!("kube-apiserver is not ready: {error}; its log:\n{log}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Fails when one of its programs has ended, with the end of that one's log.
    ///
    /// # Errors
    /// As above.
    pub fn check_running(&self) -> anyhow::Result<()> {
        let mut processes = self.locked();
        let Processes { others, api_server, _etcd } = &mut *processes;
        others.iter_mut().chain(api_server).chain(_etcd).try_for_each(Kept::check_running)
    }

    /// Sends the API server a signal: SIGSTOP and SIGCONT make it silent for a while.
    ///
    /// # Errors
    /// When it is gone.
    pub fn signal_api_server(&self, signal: Signal) -> anyhow::Result<()> {
        self.locked().api_server.as_ref().context("no API server")?.signal(signal)
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, Processes> {
        self.processes.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// `https://127.0.0.1:PORT` of the API server.
    #[must_use]
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port.port)
    }

    /// PEM file of the authority that signed the API server's certificate.
    #[must_use]
    pub fn ca_file(&self) -> &Path {
        &self.pki.ca
    }

    /// The server's end of TLS, on 127.0.0.1, for HTTP/1.1 and HTTP/2: clients of this control plane trust it.
    pub(crate) fn acceptor(&self) -> anyhow::Result<TlsAcceptor> {
        let certificate = CertificateDer::from_pem_file(&self.pki.certificate)?;
        let key = PrivateKeyDer::from_pem_file(&self.pki.key)?;
        let mut tls = rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(vec![certificate], key)?;
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(tls)))
    }

    /// Kubeconfig of a user (`admin`, `scaler`, `nobody`) in the namespace `default`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn kubeconfig(&self, user: &str) -> anyhow::Result<PathBuf> {
        self.write_kubeconfig(user, &self.url(), &token(user), "default")
    }

    /// Writes a kubeconfig for somebody with this token. `url`: of the API server, or of a proxy before it. `name` must be unique, it names the file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_kubeconfig(&self, name: &str, url: &str, token: &str, namespace: &str) -> anyhow::Result<PathBuf> {
        let path = self.folder.dir.path().join(format!("{name}.kubeconfig"));
        let text = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "it", "cluster": {"server": url, "certificate-authority": self.pki.ca}}],
            "users": [{"name": "it", "user": {"token": token}}],
            "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it", "namespace": namespace}}],
            "current-context": "it",
        });
        // Tests beside this one may read the same file.
        let mut file = tempfile::NamedTempFile::new_in(self.folder.dir.path())?;
        file.write_all(text.to_string().as_bytes())?;
        file.persist(&path).with_context(|| path.display().to_string())?;
        Ok(path)
    }

    /// A client that may do all. Of the test that asks: its connections live in that test's runtime.
    ///
    /// # Errors
    /// When its settings cannot be read.
    pub async fn admin(&self) -> anyhow::Result<Client> {
        self.client_of("admin").await
    }

    /// A client with one of the users' rights.
    ///
    /// # Errors
    /// When its settings cannot be read.
    pub async fn client_of(&self, user: &str) -> anyhow::Result<Client> {
        client(&self.kubeconfig(user)?).await
    }

    /// A new namespace whose Pods are scheduled and then stay Pending: the test plays the kubelet. `name` is for people;
    /// what it is really called is unique.
    ///
    /// # Errors
    /// When it cannot be made.
    pub async fn namespace(&self, name: &str) -> anyhow::Result<Namespace<'_>> {
        Namespace::make(self, &format!("{name}-{}", self.number())).await
    }

    /// A new namespace in which kwok plays the Pods: running at once, and ended at once, or as these annotations of a Pod
    /// say: `otto-test/runs-for` (`"2s"`, `"ever"`), `otto-test/exit-code` (of the container `job`).
    ///
    /// # Errors
    /// When it cannot be made.
    pub async fn kwok_namespace(&self, name: &str) -> anyhow::Result<Namespace<'_>> {
        Namespace::make(self, &format!("kwok-{name}-{}", self.number())).await
    }

    /// Waits until a service account (`NAMESPACE:NAME`) has the rights of the role with these rules in a namespace: the API
    /// server goes by a binding a moment after it was made.
    ///
    /// # Errors
    /// When it does not get them.
    pub async fn granted(&self, account: &str, namespace: &str, rules: &Value) -> anyhow::Result<()> {
        namespace::granted(&self.admin().await?, account, namespace, rules).await
    }

    fn number(&self) -> u32 {
        self.namespaces.fetch_add(1, Ordering::Relaxed)
    }

    /// The audit log: all requests of service accounts and of the users `scaler` and `nobody`, in the order in which they
    /// were answered.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn audit(&self) -> anyhow::Result<Vec<AuditEvent>> {
        audit::read(&self.folder.dir.path().join("audit.log"))
    }

    /// Runs kubectl to its end, as admin.
    ///
    /// # Errors
    /// When it is missing. That it fails is in the output.
    pub async fn kubectl(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        let kubeconfig = self.kubeconfig("admin")?;
        let mut command = tokio::process::Command::new(asset("kubectl")?);
        command.arg("--kubeconfig").arg(kubeconfig).args(arguments);
        command.env("HOME", self.folder.dir.path()).env_remove("KUBECONFIG");
        Ok(command.kill_on_drop(true).output().await?)
    }
}

/// A client by a kubeconfig. Must be made in the runtime that uses it.
///
/// # Errors
/// When the file is not one.
pub(crate) async fn client(kubeconfig: &Path) -> anyhow::Result<Client> {
    let file = Kubeconfig::read_from(kubeconfig)?;
    Ok(Client::try_from(Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?)?)
}

fn token(user: &str) -> String {
    format!("token-of-{user}")
}

async fn make_nodes(client: &Client, options: &Options) -> anyhow::Result<()> {
    let nodes: Api<Node> = Api::all(client.clone());
    try_join_all((1..=options.nodes).map(|number| {
        let room = json!({"cpu": "10000", "memory": "10Ti", "pods": options.pods_per_node.to_string()});
        let node = serde_json::from_value(json!({
            "metadata": {
                "name": format!("node-{number}"),
                "annotations": {"kwok.x-k8s.io/node": "fake"},
                "labels": {"kubernetes.io/hostname": format!("node-{number}"), "kubernetes.io/os": "linux"},
            },
            "status": {
                "capacity": room,
                "allocatable": room,
                "conditions": [{"type": "Ready", "status": "True", "reason": "ATest"}],
            },
        }));
        let nodes = nodes.clone();
        async move { anyhow::Ok(nodes.create(&PostParams::default(), &node?).await?) }
    }))
    .await?;
    Ok(())
}

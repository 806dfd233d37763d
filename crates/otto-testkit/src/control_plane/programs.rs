//! The programs of a control plane and their flags.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::Context;
use rustix::net::{AddressFamily, SocketType, bind, getsockname, socket, sockopt};

use super::kept::{Kept, asset};
use super::pki::Pki;
use super::{Options, STAGES};

/// A port of 127.0.0.1 that nobody else gets while this lives, though nobody listens on it yet.
///
/// Bound with SO_REUSEPORT: a program of the same user that sets it too can bind the same port, and the kernel gives it to
/// nobody who asks for any free one.
pub(crate) struct ReservedPort {
    _socket: OwnedFd,
    pub(crate) port: u16,
}

impl ReservedPort {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let socket = socket(AddressFamily::INET, SocketType::STREAM, None)?;
        sockopt::set_socket_reuseport(&socket, true)?;
        bind(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0))?;
        let port = SocketAddr::try_from(getsockname(&socket)?)?.port();
        Ok(Self { _socket: socket, port })
    }
}

/// Everything stays in memory unless `durable`: a test's cluster need not survive a power failure.
pub(crate) fn etcd(dir: &Path, options: &Options) -> anyhow::Result<Kept> {
    let listen = |name: &str| format!("unix://{}", dir.join(name).display());
    // Advertised to nobody: there are no other members, and the API server is given the socket.
    let nowhere = "http://127.0.0.1:1";
    let mut args = flags(&[
        ("--name", "only"),
        ("--data-dir", &dir.join("etcd-data").display().to_string()),
        ("--listen-client-urls", &listen("etcd.sock")),
        ("--advertise-client-urls", nowhere),
        ("--listen-peer-urls", &listen("peer.sock")),
        ("--initial-advertise-peer-urls", nowhere),
        ("--initial-cluster", &format!("only={nowhere}")),
        ("--quota-backend-bytes", "4294967296"),
        ("--log-level", "warn"),
    ]);
    args.push("--enable-grpc-gateway=false".to_owned());
    if !options.durable {
        args.push("--unsafe-no-fsync".to_owned());
    }
    Kept::start(&asset("etcd")?, &args, dir)
}

pub(crate) fn api_server(dir: &Path, port: u16, pki: &Pki) -> anyhow::Result<Kept> {
    let at = |path: &Path| path.display().to_string();
    let file = |name: &str| at(&dir.join(name));
    let mut args = flags(&[
        ("--etcd-servers", &format!("unix://{}", file("etcd.sock"))),
        ("--bind-address", "127.0.0.1"),
        ("--advertise-address", "127.0.0.1"),
        ("--secure-port", &port.to_string()),
        ("--tls-cert-file", &at(&pki.certificate)),
        ("--tls-private-key-file", &at(&pki.key)),
        ("--token-auth-file", &file("tokens.csv")),
        ("--authorization-mode", "RBAC"),
        // No kubelet lifts the taint that a new node would get.
        ("--disable-admission-plugins", "TaintNodesByCondition"),
        ("--service-account-issuer", "https://kubernetes.default.svc"),
        ("--service-account-key-file", &at(&pki.service_accounts_public)),
        ("--service-account-signing-key-file", &at(&pki.service_accounts)),
        ("--service-cluster-ip-range", "10.96.0.0/16"),
        ("--max-requests-inflight", "3000"),
        ("--max-mutating-requests-inflight", "1000"),
        ("--audit-policy-file", &file("audit-policy.yaml")),
        ("--audit-log-path", &file("audit.log")),
        ("--audit-log-mode", "blocking"),
    ]);
    // Privileged containers are allowed, as in every cluster that somebody uses.
    let flags = ["--permit-port-sharing", "--anonymous-auth=false", "--profiling=false", "--allow-privileged"];
    args.extend(flags.map(str::to_owned));
    Kept::start(&asset("kube-apiserver")?, &args, dir)
}

/// Only what Pods and namespaces need. There are no heartbeats of nodes, so nothing that would miss them.
pub(crate) fn controller_manager(dir: &Path, pki: &Pki, kubeconfig: &Path) -> anyhow::Result<Kept> {
    let controllers = [
        "namespace-controller",
        "serviceaccount-controller",
        "garbage-collector-controller",
        "pod-garbage-collector-controller",
        "resourcequota-controller",
        "disruption-controller",
        "statefulset-controller",
        "root-ca-certificate-publisher-controller",
        "clusterrole-aggregation-controller",
    ];
    let args = flags(&[
        ("--kubeconfig", &kubeconfig.display().to_string()),
        ("--controllers", &controllers.join(",")),
        ("--leader-elect", "false"),
        ("--secure-port", "0"),
        ("--service-account-private-key-file", &pki.service_accounts.display().to_string()),
        ("--root-ca-file", &pki.ca.display().to_string()),
        ("--kube-api-qps", "2000"),
        ("--kube-api-burst", "4000"),
    ]);
    Kept::start(&asset("kube-controller-manager")?, &args, dir)
}

pub(crate) fn scheduler(dir: &Path, kubeconfig: &Path) -> anyhow::Result<Kept> {
    let config = dir.join("scheduler.yaml");
    let text = format!(
        "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\n\
         leaderElection: {{leaderElect: false}}\n\
         clientConnection: {{kubeconfig: {}, qps: 5000, burst: 10000}}\n\
         podInitialBackoffSeconds: 1\npodMaxBackoffSeconds: 1\n",
        kubeconfig.display()
    );
    std::fs::write(&config, text).with_context(|| config.display().to_string())?;
    let args = flags(&[("--config", &config.display().to_string()), ("--secure-port", "0")]);
    Kept::start(&asset("kube-scheduler")?, &args, dir)
}

pub(crate) fn kwok(dir: &Path, kubeconfig: &Path) -> anyhow::Result<Kept> {
    let stages = dir.join("stages.yaml");
    std::fs::write(&stages, STAGES)?;
    let args = flags(&[
        ("--kubeconfig", &kubeconfig.display().to_string()),
        ("--config", &stages.display().to_string()),
        ("--manage-nodes-with-annotation-selector", "kwok.x-k8s.io/node=fake"),
        ("--node-lease-duration-seconds", "0"),
    ]);
    Kept::start(&asset("kwok")?, &args, dir)
}

/// `--flag=value`: flags that are switches take their value in no other way.
fn flags(pairs: &[(&str, &str)]) -> Vec<String> {
    pairs.iter().map(|(flag, value)| format!("{flag}={value}")).collect()
}

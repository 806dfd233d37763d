//! A namespace of a test, and the kubelet's part played by hand.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::authorization::v1::SubjectAccessReview;
use k8s_openapi::api::core::v1::{Namespace as Object, Pod, ServiceAccount};
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{AuditEvent, ControlPlane, PodHistory};
use crate::{PATIENCE, eventually};

const SCALER_RBAC: &str = include_str!("../../../../k8s/base/scaler/rbac.yaml");

/// A namespace of one test's own.
pub struct Namespace<'a> {
    plane: &'a ControlPlane,
    client: Client,
    name: String,
}

impl<'a> Namespace<'a> {
    pub(super) async fn make(plane: &'a ControlPlane, name: &str) -> anyhow::Result<Self> {
        let client = plane.admin().await?;
        let object: Object = from(json!({"metadata": {"name": name}}))?;
        Api::all(client.clone()).create(&PostParams::default(), &object).await?;
        has_service_account(plane, &client, name).await?;
        Ok(Self { plane, client, name: name.to_owned() })
    }

    /// What it is called.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A client that may do all.
    #[must_use]
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Objects of a kind in here, as admin.
    #[must_use]
    pub fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), &self.name)
    }

    /// The Pods in here, as admin.
    #[must_use]
    pub fn pods(&self) -> Api<Pod> {
        self.api()
    }

    /// Makes an object of any kind of this library from JSON.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub async fn create<K>(&self, object: Value) -> anyhow::Result<K>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
        K: Clone + std::fmt::Debug + Serialize + DeserializeOwned,
    {
        Ok(self.api::<K>().create(&PostParams::default(), &from(object)?).await?)
    }

    /// Labels of the namespace itself, such as `pod-security.kubernetes.io/enforce`.
    ///
    /// # Errors
    /// When the API server refuses them.
    pub async fn label(&self, labels: Value) -> anyhow::Result<()> {
        let patch = Patch::Merge(json!({"metadata": {"labels": labels}}));
        Api::<Object>::all(self.client()).patch(&self.name, &PatchParams::default(), &patch).await?;
        Ok(())
    }

    /// Waits until no Pod is taken any more that asks for the host's network. What a label demands or a quota leaves counts
    /// a moment after it was made.
    pub async fn refuses_pods(&self) {
        let container = json!({"name": "c", "image": "example.com/none:1"});
        let pod = json!({"metadata": {"name": "trial"}, "spec": {"hostNetwork": true, "containers": [container]}});
        let (pod, pods) = (from::<Pod>(pod).expect("a Pod"), self.pods());
        let dry_run = PostParams { dry_run: true, ..PostParams::default() };
        eventually(&format!("no Pod is taken in {}", self.name), || async {
            let refused = pods.create(&dry_run, &pod).await.err()?;
            matches!(refused, kube::Error::Api(status) if status.code == 403).then_some(())
        })
        .await;
    }

    /// Makes a service account with a role of these rules, which it has then, and returns a token for it.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub async fn service_account(&self, name: &str, rules: Value) -> anyhow::Result<String> {
        self.create::<ServiceAccount>(json!({"metadata": {"name": name}})).await?;
        self.create::<Role>(json!({"metadata": {"name": name}, "rules": &rules})).await?;
        self.create::<RoleBinding>(json!({
            "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": self.name}],
        }))
        .await?;
        self.plane.granted(&format!("{}:{name}", self.name), &self.name, &rules).await?;
        self.token(name).await
    }

    /// A token of a service account that is there.
    ///
    /// # Errors
    /// When there is none.
    pub async fn token(&self, service_account: &str) -> anyhow::Result<String> {
        let request: TokenRequest = from(json!({"spec": {"audiences": []}}))?;
        let accounts = self.api::<ServiceAccount>();
        let answer: TokenRequest =
            accounts.create_subresource("token", service_account, &PostParams::default(), &request).await?;
        Ok(answer.status.context("a token request without an answer")?.token)
    }

    /// Kubeconfig of a service account, at the API server itself or at a proxy before it (`url`).
    ///
    /// # Errors
    /// When there is no such account.
    pub async fn kubeconfig(&self, service_account: &str, url: Option<&str>) -> anyhow::Result<PathBuf> {
        let token = self.token(service_account).await?;
        let own = self.plane.url();
        let name = format!("{}-{service_account}{}", self.name, if url.is_some() { "-proxy" } else { "" });
        self.plane.write_kubeconfig(&name, url.unwrap_or(&own), &token, &self.name)
    }

    /// Kubeconfig of a service account `otto-scaler`, made if need be with the very Role of `k8s/base`.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub async fn scaler_kubeconfig(&self, url: Option<&str>) -> anyhow::Result<PathBuf> {
        if self.api::<ServiceAccount>().get_opt("otto-scaler").await?.is_none() {
            self.service_account("otto-scaler", scaler_rules()?).await?;
        }
        self.kubeconfig("otto-scaler", url).await
    }

    /// Notes every Pod from now on.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub async fn history(&self) -> anyhow::Result<PodHistory> {
        PodHistory::start(self.pods()).await
    }

    /// All Pods of now.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub async fn list_pods(&self) -> anyhow::Result<Vec<Pod>> {
        Ok(self.pods().list(&ListParams::default()).await?.items)
    }

    /// Waits until there are so many Pods, and returns them.
    pub async fn pods_there(&self, count: usize) -> Vec<Pod> {
        eventually(&format!("{count} Pods in {}", self.name), || async {
            let pods = self.list_pods().await.expect("list of Pods");
            (pods.len() == count).then_some(pods)
        })
        .await
    }

    /// Waits until a Pod has a node: what comes next is the kubelet's.
    ///
    /// # Errors
    /// When the API server does not answer, or the Pod is not there in the end.
    pub async fn scheduled(&self, pod: &str) -> anyhow::Result<Pod> {
        let start = Instant::now();
        loop {
            let found = self.pods().get_opt(pod).await?;
            let node = found.as_ref().and_then(|pod| pod.spec.as_ref()?.node_name.clone());
            match found {
                Some(pod) if node.is_some() => return Ok(pod),
                _ if start.elapsed() > PATIENCE => bail!("Pod {pod} was not scheduled"),
                _ => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }

    /// Merges into a Pod's status: lists (conditions, containerStatuses) are replaced as a whole, null removes.
    ///
    /// # Errors
    /// When there is no such Pod, or the API server refuses the status.
    pub async fn set_status(&self, pod: &str, status: Value) -> anyhow::Result<Pod> {
        let patch = Patch::Merge(json!({"status": status}));
        Ok(self.pods().patch_status(pod, &PatchParams::default(), &patch).await?)
    }

    /// As a kubelet: all containers run.
    ///
    /// # Errors
    /// As [`Self::set_status`].
    pub async fn run_pod(&self, pod: &str) -> anyhow::Result<Pod> {
        let running = json!({"running": {"startedAt": now()}});
        let statuses = self.container_statuses(pod, |_| running.clone()).await?;
        let status =
            json!({"phase": "Running", "startTime": now(), "podIP": "10.0.0.2", "containerStatuses": statuses});
        self.set_status(pod, status).await
    }

    /// As a kubelet: the container `job` has ended so, all others still run (the drainer).
    ///
    /// # Errors
    /// As [`Self::set_status`].
    pub async fn end_job(&self, pod: &str, exit_code: i32, message: &str) -> anyhow::Result<Pod> {
        let running = json!({"running": {"startedAt": now()}});
        let ended = ended(exit_code, message);
        let job = |name: &str| if name == "job" { ended.clone() } else { running.clone() };
        let statuses = self.container_statuses(pod, job).await?;
        self.set_status(pod, json!({"phase": "Running", "containerStatuses": statuses})).await
    }

    /// As a kubelet: all containers have ended, `job` with this exit code and termination message.
    ///
    /// # Errors
    /// As [`Self::set_status`].
    pub async fn end_pod(&self, pod: &str, exit_code: i32, message: &str) -> anyhow::Result<Pod> {
        let job = |name: &str| if name == "job" { ended(exit_code, message) } else { ended(0, "") };
        let statuses = self.container_statuses(pod, job).await?;
        let phase = if exit_code == 0 { "Succeeded" } else { "Failed" };
        self.set_status(pod, json!({"phase": phase, "containerStatuses": statuses})).await
    }

    /// As a kubelet: a Pod that is being deleted has ended, and goes.
    ///
    /// # Errors
    /// When there is no such Pod.
    pub async fn let_go(&self, pod: &str) -> anyhow::Result<()> {
        self.pods().delete(pod, &DeleteParams::default().grace_period(0)).await?;
        Ok(())
    }

    async fn container_statuses(&self, pod: &str, state: impl Fn(&str) -> Value) -> anyhow::Result<Vec<Value>> {
        let spec = self.pods().get(pod).await?.spec.context("a Pod without a spec")?;
        let status = |name: &str, image: Option<String>| {
            let state = state(name);
            let running = state.get("running").is_some();
            json!({"name": name, "image": image, "imageID": "", "ready": running, "started": running,
                   "restartCount": 0, "state": state})
        };
        Ok(spec.containers.into_iter().map(|container| status(&container.name, container.image)).collect())
    }

    /// What was asked in here by service accounts, in the order of the answers.
    ///
    /// # Errors
    /// When the audit log cannot be read.
    pub fn audit(&self) -> anyhow::Result<Vec<AuditEvent>> {
        let mut all = self.plane.audit()?;
        all.retain(|event| event.object_ref.namespace == self.name);
        Ok(all)
    }

    /// The control plane it is in.
    #[must_use]
    pub fn plane(&self) -> &'a ControlPlane {
        self.plane
    }
}

/// What the scaler may do in the workers' namespace: the rules of its Role in `k8s/base`.
///
/// # Errors
/// When the manifest is not one.
pub fn scaler_rules() -> anyhow::Result<Value> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(SCALER_RBAC).context("rbac.yaml")?;
    let role = documents.into_iter().find(|object| object["kind"] == "Role").context("rbac.yaml has no Role")?;
    Ok(role["rules"].clone())
}

fn ended(exit_code: i32, message: &str) -> Value {
    let reason = if exit_code == 0 { "Completed" } else { "Error" };
    json!({"terminated": {
        "exitCode": exit_code, "reason": reason, "message": message, "startedAt": now(), "finishedAt": now(),
        "containerID": "containerd://0",
    }})
}

fn now() -> String {
    let now = k8s_openapi::jiff::Timestamp::now();
    format!("{now:.0}")
}

fn from<K: DeserializeOwned>(object: Value) -> anyhow::Result<K> {
    Ok(serde_json::from_value(object)?)
}

pub(super) async fn granted(client: &Client, account: &str, namespace: &str, rules: &Value) -> anyhow::Result<()> {
    let Some(rule) = rules.as_array().and_then(|rules| rules.last()) else { return Ok(()) };
    let first = |list: &str| rule[list][0].as_str().unwrap_or_default();
    let review: SubjectAccessReview = from(json!({"spec": {
        "user": format!("system:serviceaccount:{account}"),
        "resourceAttributes": {
            "namespace": namespace,
            "verb": first("verbs"),
            "group": first("apiGroups"),
            "resource": first("resources"),
            "name": first("resourceNames"),
        },
    }}))?;
    let reviews = Api::<SubjectAccessReview>::all(client.clone());
    let start = Instant::now();
    loop {
        let answer = reviews.create(&PostParams::default(), &review).await?;
        if answer.status.is_some_and(|status| status.allowed) {
            return Ok(());
        }
        if start.elapsed() > PATIENCE {
            bail!("{account} does not get its rights in {namespace}: {rule}");
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Waits for the service account that the controller manager gives every namespace; there are no Pods before it.
pub(super) async fn has_service_account(plane: &ControlPlane, client: &Client, namespace: &str) -> anyhow::Result<()> {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    let start = Instant::now();
    while accounts.get_opt("default").await?.is_none() {
        plane.check_running()?;
        if start.elapsed() > PATIENCE {
            bail!("namespace {namespace} gets no service account: the controller manager does not work");
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

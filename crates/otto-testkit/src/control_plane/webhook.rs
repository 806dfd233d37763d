//! A mutating admission webhook, as policy engines have them.

use std::sync::Arc;

use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::PostParams;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

use super::Namespace;
use crate::eventually;

/// Gives every Pod that is created in a namespace a label. Ends when it is dropped; then Pods are as they were sent.
pub struct Webhook {
    accepting: JoinHandle<()>,
}

impl Drop for Webhook {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Webhook {
    /// Starts one on a free port of 127.0.0.1, and waits until the API server asks it.
    ///
    /// # Errors
    /// When it cannot listen, or the API server refuses it.
    pub async fn labels_pods(namespace: &Namespace<'_>, label: &str, value: &str) -> anyhow::Result<Self> {
        let (plane, name) = (namespace.plane(), namespace.name());
        let path = format!("/metadata/labels/{}", label.replace('~', "~0").replace('/', "~1"));
        let patch = json!([{"op": "add", "path": path, "value": value}]).to_string();
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("https://127.0.0.1:{}/", listener.local_addr()?.port());
        let accepting = tokio::spawn(accept(listener, plane.acceptor()?, patch.into()));
        let webhook = Self { accepting };
        let configuration: MutatingWebhookConfiguration = serde_json::from_value(json!({
            "metadata": {"name": name},
            "webhooks": [{
                "name": "labels.example.com",
                "clientConfig": {"url": url, "caBundle": ByteString(std::fs::read(plane.ca_file())?)},
                "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}],
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}},
                "failurePolicy": "Ignore",
                "sideEffects": "None",
                "admissionReviewVersions": ["v1"],
            }],
        }))?;
        Api::all(namespace.client()).create(&PostParams::default(), &configuration).await?;
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "trial", "labels": {"a": "b"}},
            "spec": {"containers": [{"name": "c", "image": "example.com/none:1"}]},
        }))?;
        let dry_run = PostParams { dry_run: true, ..PostParams::default() };
        eventually("the webhook is asked", || async {
            let labels = namespace.pods().create(&dry_run, &pod).await.ok()?.metadata.labels?;
            (labels.get(label).is_some_and(|found| found == value)).then_some(())
        })
        .await;
        Ok(webhook)
    }
}

async fn accept(listener: TcpListener, tls: TlsAcceptor, patch: Arc<str>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                if let Ok((stream, _)) = accepted {
                    connections.spawn(serve(stream, tls.clone(), Arc::clone(&patch)));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve(stream: TcpStream, tls: TlsAcceptor, patch: Arc<str>) -> anyhow::Result<()> {
    let stream = TokioIo::new(tls.accept(stream).await?);
    let service = service_fn(|request| answer(request, Arc::clone(&patch)));
    let served = auto::Builder::new(TokioExecutor::new()).serve_connection(stream, service).await;
    served.map_err(|error| anyhow::anyhow!("{error}"))
}

async fn answer(request: Request<Incoming>, patch: Arc<str>) -> anyhow::Result<Response<Full<Bytes>>> {
    let review: Value = serde_json::from_slice(&request.into_body().collect().await?.to_bytes())?;
    let answer = json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "response": {
            "uid": review["request"]["uid"],
            "allowed": true,
            "patchType": "JSONPatch",
            "patch": ByteString(patch.as_bytes().to_vec()),
        },
    });
    Ok(Response::builder().header("content-type", "application/json").body(answer.to_string().into())?)
}

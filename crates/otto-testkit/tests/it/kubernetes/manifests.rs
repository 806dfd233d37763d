//! The manifests of `k8s/`, against the real API server.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::Context;
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::authorization::v1::{SelfSubjectAccessReview, SelfSubjectRulesReview};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::PostParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use otto_testkit::{ControlPlane, Namespace, eventually, scaler_rules};
use serde_json::json;
use tokio::sync::OnceCell;

fn k8s() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../k8s"))
}

async fn kubectl(plane: &ControlPlane, arguments: &[&str]) -> anyhow::Result<(String, String)> {
    let output = plane.kubectl(arguments).await?;
    let (out, error) = (String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?);
    anyhow::ensure!(output.status.success(), "kubectl {arguments:?}: {error}");
    Ok((out, error))
}

/// The control plane, with the namespaces, the service accounts and their rights as `kubectl apply -k` makes them.
async fn installed() -> anyhow::Result<&'static ControlPlane> {
    static INSTALLED: OnceCell<()> = OnceCell::const_new();
    let plane = ControlPlane::shared().await?;
    INSTALLED
        .get_or_try_init(|| async {
            let folder = tempfile::tempdir()?;
            let (all, _) = kubectl(plane, &["kustomize", &k8s().join("base").display().to_string()]).await?;
            let wanted =
                ["kind: Namespace\n", "kind: ServiceAccount\n", "kind: Role\n", "kind: RoleBinding\n", "kind: Cluster"];
            let rights: Vec<_> = all
                .split("\n---\n")
                .filter(|object| wanted.iter().any(|kind| format!("{object}\n").contains(&format!("\n{kind}"))))
                .collect();
            let file = folder.path().join("rights.yaml");
            std::fs::write(&file, rights.join("\n---\n"))?;
            kubectl(plane, &["apply", "-f", &file.display().to_string()]).await?;
            plane.granted("ottoscaler:otto-scaler", "ottoscaler-workers", &scaler_rules()?).await
        })
        .await?;
    Ok(plane)
}

/// Every overlay and component is taken by the API server: no unknown field, and no warning (all of ours is within the
/// restricted Pod Security level).
#[tokio::test(flavor = "multi_thread")]
async fn the_api_server_takes_every_overlay() -> anyhow::Result<()> {
    let plane = installed().await?;
    let mut overlays = vec![k8s().join("base")];
    for folder in ["overlays", "components"] {
        for entry in std::fs::read_dir(k8s().join(folder))? {
            overlays.push(entry?.path());
        }
    }
    assert!(overlays.len() >= 7, "{overlays:?}");
    for overlay in overlays {
        let name = overlay.display().to_string();
        let (all, warnings) = kubectl(plane, &["kustomize", &name]).await?;
        assert!(warnings.is_empty(), "{name}: {warnings}");
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(file.path(), &all)?;
        let path = file.path().display().to_string();
        let dry_run = ["apply", "--dry-run=server", "--validate=strict", "-f", &path];
        let (taken, warnings) = kubectl(plane, &dry_run).await.with_context(|| name.clone())?;
        let objects = all.split("\n---\n").count();
        assert_eq!(taken.lines().filter(|line| line.contains("server dry run")).count(), objects, "{name}: {taken}");
        // Objects that `kubectl apply` did not make are changed by it for the first time, and it says so.
        let warnings: Vec<_> = warnings.lines().filter(|line| !line.contains("last-applied-configuration")).collect();
        assert!(warnings.is_empty(), "{name}: {warnings:?}");
    }
    Ok(())
}

/// A StatefulSet whose Pod does not become ready is repaired by applying the repair, without anybody's hand at the Pod. Here
/// no Pod ever becomes ready: nobody makes its volume.
#[tokio::test(flavor = "multi_thread")]
async fn a_broken_update_is_repaired_by_the_next_one() -> anyhow::Result<()> {
    let plane = installed().await?;
    let namespace = plane.namespace("repaired").await?;
    let sets = sets_for(&namespace).await?;
    let file = tempfile::NamedTempFile::new()?;
    let path = file.path().display().to_string();
    for tag in ["broken", "repaired"] {
        let images = [("ottoscaler/otto-log-ingest:dev", "otto-log-ingest-0"), ("redis:7-bookworm", "otto-redis-0")];
        let text = images.iter().fold(sets.clone(), |text, (image, _)| text.replace(image, &format!("{image}-{tag}")));
        std::fs::write(file.path(), text)?;
        kubectl(plane, &["apply", "-f", &path]).await?;
        for (image, pod) in images {
            let wanted = format!("{image}-{tag}");
            eventually(&format!("{pod} has the image {wanted}"), || async {
                let spec = namespace.pods().get_opt(pod).await.ok()??.spec?;
                (spec.containers[0].image.as_deref() == Some(&wanted)).then_some(())
            })
            .await;
        }
    }
    Ok(())
}

/// What `cargo xtask up` and the manual do to a StatefulSet that was made before it had `podManagementPolicy: Parallel`.
#[tokio::test(flavor = "multi_thread")]
async fn a_set_that_is_made_again_keeps_its_pod() -> anyhow::Result<()> {
    let plane = installed().await?;
    let namespace = plane.namespace("again").await?;
    let sets = sets_for(&namespace).await?;
    let file = tempfile::NamedTempFile::new()?;
    let path = file.path().display().to_string();
    std::fs::write(file.path(), sets.replace("podManagementPolicy: Parallel", "podManagementPolicy: OrderedReady"))?;
    kubectl(plane, &["apply", "-f", &path]).await?;
    let names = ["otto-log-ingest-0", "otto-redis-0"];
    let owners = || async {
        let mut owners = Vec::new();
        for name in names {
            let pod = namespace.pods().get_opt(name).await.ok()??.metadata;
            owners.push((pod.uid?, pod.owner_references?.pop()?.uid));
        }
        Some(owners)
    };
    let before = eventually("both Pods are there", owners).await;
    std::fs::write(file.path(), &sets)?;
    let refused = kubectl(plane, &["apply", "-f", &path]).await.unwrap_err().to_string();
    assert!(refused.contains("updates to statefulset spec"), "{refused}");
    let delete = ["delete", "statefulset", "--all", "--cascade=orphan", "--namespace", namespace.name()];
    kubectl(plane, &delete).await?;
    kubectl(plane, &["apply", "-f", &path]).await?;
    let after = eventually("both Pods have a new owner", || async {
        let now = owners().await?;
        now.iter().zip(&before).all(|(now, before)| now.1 != before.1).then_some(now)
    })
    .await;
    let uids = |pods: &[(String, String)]| pods.iter().map(|pod| pod.0.clone()).collect::<Vec<_>>();
    assert_eq!(uids(&after), uids(&before));
    Ok(())
}

/// The StatefulSets of the dev overlay, for a namespace which has what they need.
async fn sets_for(namespace: &Namespace<'_>) -> anyhow::Result<String> {
    namespace.create::<ServiceAccount>(json!({"metadata": {"name": "otto-log-ingest"}})).await?;
    let overlay = k8s().join("overlays/dev").display().to_string();
    let (all, _) = kubectl(namespace.plane(), &["kustomize", &overlay]).await?;
    let sets: Vec<_> = all.split("\n---\n").filter(|object| object.contains("\nkind: StatefulSet\n")).collect();
    assert_eq!(sets.len(), 2);
    Ok(sets.join("\n---\n").replace("namespace: ottoscaler\n", &format!("namespace: {}\n", namespace.name())))
}

async fn client_of(plane: &ControlPlane, namespace: &str, account: &str) -> anyhow::Result<Client> {
    let accounts: Api<ServiceAccount> = Api::namespaced(plane.admin().await?, namespace);
    let request: TokenRequest = serde_json::from_value(json!({"spec": {"audiences": []}}))?;
    let answer: TokenRequest = accounts.create_subresource("token", account, &PostParams::default(), &request).await?;
    let token = answer.status.context("no token")?.token;
    let file = plane.write_kubeconfig(&format!("{namespace}-{account}"), &plane.url(), &token, namespace)?;
    let config = Config::from_custom_kubeconfig(Kubeconfig::read_from(file)?, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

/// `verb group/resource[name]` for all that somebody may do in a namespace, what holds in the whole cluster included.
async fn may(client: &Client, namespace: &str) -> anyhow::Result<BTreeSet<String>> {
    let review: SelfSubjectRulesReview = serde_json::from_value(json!({"spec": {"namespace": namespace}}))?;
    let status = Api::all(client.clone()).create(&PostParams::default(), &review).await?.status.context("no answer")?;
    assert!(!status.incomplete, "{:?}", status.evaluation_error);
    let mut all = BTreeSet::new();
    for rule in status.resource_rules {
        let names = rule.resource_names.unwrap_or_default();
        for group in rule.api_groups.unwrap_or_default() {
            for resource in rule.resources.clone().unwrap_or_default() {
                for verb in &rule.verbs {
                    let names = names.join(",");
                    all.insert(format!("{verb} {group}/{resource}[{names}]"));
                }
            }
        }
    }
    Ok(all)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_scaler_may_do_what_it_does_and_nothing_more() -> anyhow::Result<()> {
    let plane = installed().await?;
    let scaler = client_of(plane, "ottoscaler", "otto-scaler").await?;
    // What every service account of every cluster may do: ask what it may do.
    let anybody = client_of(plane, "default", "default").await?;
    let expected = [
        "create /configmaps[]",
        "create /pods[]",
        "create coordination.k8s.io/leases[]",
        "delete /pods[]",
        "get /configmaps[ottoscaler-anchor]",
        "get /pods[]",
        "get coordination.k8s.io/leases[otto-scaler]",
        "list /configmaps[ottoscaler-anchor]",
        "list /events[]",
        "list /pods[]",
        "update coordination.k8s.io/leases[otto-scaler]",
        "watch /configmaps[ottoscaler-anchor]",
        "watch /pods[]",
        "watch coordination.k8s.io/leases[otto-scaler]",
    ];
    for namespace in ["ottoscaler-workers", "ottoscaler", "default", "kube-system"] {
        let own: BTreeSet<_> = &may(&scaler, namespace).await? - &may(&anybody, namespace).await?;
        let own: Vec<_> = own.iter().map(String::as_str).collect();
        let expected = if namespace == "ottoscaler-workers" { &expected[..] } else { &[] };
        assert_eq!(own, expected, "in {namespace}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_answers_of_the_api_server_agree() -> anyhow::Result<()> {
    let plane = installed().await?;
    let scaler = client_of(plane, "ottoscaler", "otto-scaler").await?;
    let matrix = [
        // What it does.
        ("ottoscaler-workers", "create", "", "pods", "", "", true),
        ("ottoscaler-workers", "get", "", "pods", "", "any", true),
        ("ottoscaler-workers", "list", "", "pods", "", "", true),
        ("ottoscaler-workers", "watch", "", "pods", "", "", true),
        ("ottoscaler-workers", "delete", "", "pods", "", "any", true),
        ("ottoscaler-workers", "create", "", "configmaps", "", "", true),
        ("ottoscaler-workers", "get", "", "configmaps", "", "ottoscaler-anchor", true),
        ("ottoscaler-workers", "watch", "", "configmaps", "", "ottoscaler-anchor", true),
        ("ottoscaler-workers", "create", "coordination.k8s.io", "leases", "", "", true),
        ("ottoscaler-workers", "get", "coordination.k8s.io", "leases", "", "otto-scaler", true),
        ("ottoscaler-workers", "update", "coordination.k8s.io", "leases", "", "otto-scaler", true),
        ("ottoscaler-workers", "watch", "coordination.k8s.io", "leases", "", "otto-scaler", true),
        ("ottoscaler-workers", "list", "", "events", "", "", true),
        // What somebody would do who has taken it over.
        ("ottoscaler-workers", "create", "", "pods", "exec", "any", false),
        ("ottoscaler-workers", "get", "", "pods", "log", "any", false),
        ("ottoscaler-workers", "create", "", "pods", "eviction", "any", false),
        ("ottoscaler-workers", "update", "", "pods", "", "any", false),
        ("ottoscaler-workers", "patch", "", "pods", "status", "any", false),
        ("ottoscaler-workers", "deletecollection", "", "pods", "", "", false),
        ("ottoscaler-workers", "get", "", "secrets", "", "any", false),
        ("ottoscaler-workers", "list", "", "secrets", "", "", false),
        ("ottoscaler-workers", "get", "", "configmaps", "", "another", false),
        ("ottoscaler-workers", "list", "", "configmaps", "", "", false),
        ("ottoscaler-workers", "delete", "", "configmaps", "", "ottoscaler-anchor", false),
        ("ottoscaler-workers", "delete", "coordination.k8s.io", "leases", "", "otto-scaler", false),
        ("ottoscaler-workers", "create", "", "serviceaccounts", "token", "default", false),
        ("ottoscaler-workers", "create", "rbac.authorization.k8s.io", "rolebindings", "", "", false),
        ("ottoscaler", "create", "", "pods", "", "", false),
        ("ottoscaler", "get", "", "secrets", "", "otto-token", false),
        ("default", "create", "", "pods", "", "", false),
        ("kube-system", "list", "", "pods", "", "", false),
        ("", "list", "", "pods", "", "", false),
        ("", "list", "", "nodes", "", "", false),
        ("", "get", "", "namespaces", "", "ottoscaler", false),
    ];
    let mut wrong = Vec::new();
    for (namespace, verb, group, resource, subresource, name, expected) in matrix {
        let attributes = json!({
            "namespace": namespace, "verb": verb, "group": group, "resource": resource, "subresource": subresource, "name": name,
        });
        let review: SelfSubjectAccessReview =
            serde_json::from_value(json!({"spec": {"resourceAttributes": attributes}}))?;
        let answer = Api::all(scaler.clone()).create(&PostParams::default(), &review).await?;
        if answer.status.is_none_or(|status| status.allowed != expected) {
            wrong.push(format!("{verb} {group}/{resource}/{subresource} {name} in `{namespace}`: expected {expected}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    Ok(())
}

/// The accounts of everything else of ours have no rights at all.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_else_of_ours_may_do_anything() -> anyhow::Result<()> {
    let plane = installed().await?;
    let anybody = client_of(plane, "default", "default").await?;
    for namespace in ["ottoscaler", "ottoscaler-workers"] {
        let accounts: Api<ServiceAccount> = Api::namespaced(plane.admin().await?, namespace);
        for account in accounts.list(&kube::api::ListParams::default()).await?.items {
            let name = account.metadata.name.unwrap_or_default();
            if (namespace, name.as_str()) == ("ottoscaler", "otto-scaler") {
                continue;
            }
            let client = client_of(plane, namespace, &name).await?;
            for place in ["ottoscaler", "ottoscaler-workers", "default"] {
                let own: BTreeSet<_> = &may(&client, place).await? - &may(&anybody, place).await?;
                assert!(own.is_empty(), "{namespace}/{name} in {place}: {own:?}");
            }
        }
    }
    Ok(())
}

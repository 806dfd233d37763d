//! The control plane of the test kit itself.

use otto_testkit::{ControlPlane, eventually};
use serde_json::json;

fn pod(name: &str, annotations: serde_json::Value) -> serde_json::Value {
    let container = |name: &str| json!({"name": name, "image": "example.com/none:1"});
    json!({
        "metadata": {"name": name, "annotations": annotations},
        "spec": {"restartPolicy": "Never", "containers": [container("otto"), container("job")]},
    })
}

fn phase(pod: &k8s_openapi::api::core::v1::Pod) -> Option<&str> {
    pod.status.as_ref()?.phase.as_deref()
}

#[tokio::test(flavor = "multi_thread")]
async fn kwok_plays_pods_where_it_is_asked_to_and_nowhere_else() -> anyhow::Result<()> {
    let plane = ControlPlane::shared().await?;
    let played = plane.kwok_namespace("played").await?;
    let by_hand = plane.namespace("by-hand").await?;
    for namespace in [&played, &by_hand] {
        namespace.create::<k8s_openapi::api::core::v1::Pod>(pod("plain", json!({}))).await?;
        namespace.create::<k8s_openapi::api::core::v1::Pod>(pod("runs", json!({"otto-test/runs-for": "ever"}))).await?;
        namespace.create::<k8s_openapi::api::core::v1::Pod>(pod("fails", json!({"otto-test/exit-code": "3"}))).await?;
    }
    for (name, wanted) in [("plain", "Succeeded"), ("runs", "Running"), ("fails", "Failed")] {
        eventually(&format!("Pod {name} is {wanted}"), || async {
            let found = played.pods().get(name).await.ok()?;
            (phase(&found) == Some(wanted)).then_some(())
        })
        .await;
        by_hand.scheduled(name).await?;
    }
    let failed = played.pods().get("fails").await?;
    let statuses = failed.status.unwrap_or_default().container_statuses.unwrap_or_default();
    let codes: Vec<_> =
        statuses.into_iter().map(|one| (one.name, one.state.unwrap().terminated.unwrap().exit_code)).collect();
    assert_eq!(codes, [("otto".to_owned(), 0), ("job".to_owned(), 3)]);

    assert!(by_hand.list_pods().await?.iter().all(|pod| phase(pod) == Some("Pending")), "kwok plays a test's own Pods");
    assert_eq!(phase(&by_hand.run_pod("plain").await?), Some("Running"));
    assert_eq!(phase(&by_hand.end_job("plain", 0, "fine").await?), Some("Running"));
    assert_eq!(phase(&by_hand.end_pod("plain", 0, "fine").await?), Some("Succeeded"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_service_accounts_do_is_in_the_audit_log_and_only_what_they_may_is_done() -> anyhow::Result<()> {
    let plane = ControlPlane::shared().await?;
    let namespace = plane.namespace("audit").await?;
    let kubeconfig = namespace.scaler_kubeconfig(None).await?;
    let create = |name: &str| {
        let text = pod(name, json!({})).to_string();
        let path = kubeconfig.with_file_name(format!("{name}.json"));
        std::fs::write(&path, text).map(|()| path)
    };
    let kubeconfig = kubeconfig.display().to_string();
    let whole = |name: &str| {
        let mut object = pod(name, json!({}));
        object["apiVersion"] = json!("v1");
        object["kind"] = json!("Pod");
        object.to_string()
    };
    let path = create("seen")?;
    std::fs::write(&path, whole("seen"))?;
    let file = path.display().to_string();
    for code in ["dry", "201", "409"] {
        let mut arguments = vec!["--kubeconfig", &kubeconfig, "create", "-f", &file];
        if code == "dry" {
            arguments.push("--dry-run=server");
        }
        let output = plane.kubectl(&arguments).await?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.success(), code != "409", "{text}");
    }
    let output = plane.kubectl(&["--kubeconfig", &kubeconfig, "get", "secrets"]).await?;
    assert!(String::from_utf8_lossy(&output.stderr).contains("cannot list resource"), "{output:?}");
    let pods = eventually("four answers are logged", || async {
        let all = namespace.audit().expect("audit log");
        let pods: Vec<_> = all.into_iter().filter(|event| event.object_ref.resource != "configmaps").collect();
        (pods.len() == 4).then_some(pods)
    })
    .await;
    let seen: Vec<_> = pods
        .iter()
        .map(|event| (event.verb.as_str(), event.object_ref.name.as_str(), event.response_status.code))
        .collect();
    assert_eq!(seen, [("create", "seen", 201), ("create", "seen", 201), ("create", "seen", 409), ("list", "", 403)]);
    assert_eq!(pods.iter().filter(|event| event.is_created_pod()).count(), 1);
    assert_eq!(pods[0].user.username, format!("system:serviceaccount:{}:otto-scaler", namespace.name()));
    Ok(())
}

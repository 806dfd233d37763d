//! What cannot work is told where people look: at the start, in the log, and at the task.

use std::path::Path;

use futures::{StreamExt, stream};
use k8s_openapi::api::coordination::v1::Lease;
use otto_proto::v1::ottoscaler_service_client::OttoscalerServiceClient;
use otto_proto::v1::{TaskState, WorkerStatusRequest};
use otto_testkit::{PATIENCE, binary, eventually, scaler_rules};
use serde_json::{Value, json};
use tokio::process::Command;

use super::cluster::{Cluster, Pods, Setup};
use super::life::template;

/// The rules of the scaler's Role without one verb of one resource.
fn rules_without(verb: &str, resource: &str) -> anyhow::Result<Value> {
    let mut rules = scaler_rules()?;
    for rule in rules.as_array_mut().into_iter().flatten() {
        if rule["resources"].as_array().is_some_and(|all| all.iter().any(|one| one == resource))
            && let Some(verbs) = rule["verbs"].as_array_mut()
        {
            verbs.retain(|one| one != verb);
        }
    }
    if let Some(rules) = rules.as_array_mut() {
        rules.retain(|rule| rule["verbs"].as_array().is_some_and(|verbs| !verbs.is_empty()));
    }
    Ok(rules)
}

async fn without(verb: &str, resource: &str, flags: &[&str]) -> anyhow::Result<Cluster> {
    let setup = Setup::new("forbidden", Pods::ByHand).await?;
    setup.namespace.service_account("otto-scaler", rules_without(verb, resource)?).await?;
    if (verb, resource) == ("watch", "leases") {
        // Somebody else leads, so the Lease is looked at.
        let spec = json!({"holderIdentity": "another", "leaseDurationSeconds": 3600});
        setup.namespace.create::<Lease>(json!({"metadata": {"name": "otto-scaler"}, "spec": spec})).await?;
    }
    let kubeconfig = setup.namespace.kubeconfig("otto-scaler", Some(&setup.proxy.url())).await?;
    setup.start(&kubeconfig, "http://127.0.0.1:1", flags).await
}

async fn in_log(cluster: &Cluster, words: &[&str]) {
    eventually(&format!("the scaler's log says {words:?}"), async || {
        let log = cluster.scaler.process.log();
        words.iter().all(|word| log.contains(word)).then_some(())
    })
    .await;
}

/// What a task's only worker says.
async fn at_worker(cluster: &Cluster, task_id: &str, words: &[&str]) {
    eventually(&format!("the worker of {task_id} says {words:?}"), async || {
        let mut calls = OttoscalerServiceClient::new(cluster.scaler.channel().await.ok()?);
        let request = WorkerStatusRequest { task_id: task_id.to_owned(), ..WorkerStatusRequest::default() };
        let rows = calls.get_worker_status(request).await.ok()?.into_inner().workers;
        let text = rows.first()?.error_message.clone();
        words.iter().all(|word| text.contains(word)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_verb_that_is_missing_is_named() {
    let verbs = [
        ("create", "pods"),
        ("watch", "pods"),
        ("delete", "pods"),
        ("create", "configmaps"),
        ("watch", "configmaps"),
        ("create", "leases"),
        ("update", "leases"),
        ("watch", "leases"),
    ];
    stream::iter(verbs)
        .for_each_concurrent(3, async |(verb, resource)| {
            if let Err(error) = missing(verb, resource).await {
                panic!("without {verb} of {resource}: {error:#}");
            }
            println!("without {verb} of {resource}: told");
        })
        .await;
}

async fn missing(verb: &str, resource: &str) -> anyhow::Result<()> {
    let cluster = without(verb, resource, &[]).await?;
    let grant = format!("{verb} on {resource}");
    match (verb, resource) {
        ("create", "pods" | "configmaps") => {
            cluster.add("task", 1, &[]).await?;
            at_worker(&cluster, "task", &[&grant]).await;
        }
        ("delete", _) => {
            cluster.add("task", 1, &[]).await?;
            let pod = cluster.pod("task", 0, 1).await;
            cluster.namespace.run_pod(&pod).await?;
            cluster.until("task", TaskState::Running).await;
            let event = [("type", "scale_down"), ("task_id", "task"), ("pod_count", "0")];
            crate::system::add(&mut cluster.redis.connect().await?, &event).await?;
            in_log(&cluster, &[&grant]).await;
        }
        ("update", "leases") => {
            // The Lease is there, and free.
            let lease = json!({"metadata": {"name": "otto-scaler"}, "spec": {"holderIdentity": ""}});
            let _ = cluster.namespace.create::<Lease>(lease).await;
            in_log(&cluster, &["cannot update resource", "leases"]).await;
        }
        (_, "leases") => in_log(&cluster, &[&format!("cannot {verb} resource"), "leases"]).await,
        _ => in_log(&cluster, &[&grant]).await,
    }
    Ok(())
}

/// A scaler that ends at once: what it says.
async fn ends(setup: &Setup, kubeconfig: &Path, flags: &[&str]) -> anyhow::Result<String> {
    let mut command = Command::new(binary("otto-scaler")?);
    command.args(["--driver", "kubernetes", "--grpc-addr", "127.0.0.1:0", "--admin-addr", "127.0.0.1:0", "--data-dir"]);
    command.arg(setup.dir.path().join("data")).args(setup.flags("http://127.0.0.1:1")).args(flags);
    let output = command.env("KUBECONFIG", kubeconfig).kill_on_drop(true).output();
    let output = tokio::time::timeout(PATIENCE, output).await??;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && !text.contains("panicked"), "{flags:?}: {text}");
    Ok(text)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_that_makes_no_pods_ends_the_start() -> anyhow::Result<()> {
    let setup = Setup::new("templates", Pods::ByHand).await?;
    setup.namespace.label(json!({"pod-security.kubernetes.io/enforce": "baseline"})).await?;
    setup.namespace.refuses_pods().await;
    let kubeconfig = setup.namespace.scaler_kubeconfig(None).await?;
    let job = |job: Value| json!({"spec": {"containers": [json!({"name": "job"}).as_object().cloned().map(|mut all| { all.extend(job.as_object().cloned().unwrap_or_default()); all })]}});
    for (wrong, words) in [
        (json!({"spec": {"nodeSelecter": {"a": "b"}}}), vec!["nodeSelecter"]),
        (job(json!({"resources": {"limits": {"cpu": "lots"}}})), vec!["cpu"]),
        (job(json!({"resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}})), vec!["requests", "cpu"]),
        (json!({"spec": {"hostNetwork": true}}), vec!["hostNetwork", "PodSecurity"]),
        (json!({"spec": {"priorityClassName": "no-such-class"}}), vec!["no-such-class"]),
        (json!({"spec": {"serviceAccountName": "no-such-account"}}), vec!["no-such-account", "not found"]),
        (json!({"metadata": {"labels": {"a": "not a value"}}}), vec!["labels", "not a value"]),
        (json!({"classes": {"big": {"spec": {"tolerations": [{"operator": "Perhaps"}]}}}}), vec!["big", "tolerations"]),
    ] {
        let file = template(&setup.dir, &wrong)?;
        let text = ends(&setup, &kubeconfig, &["--pod-template", &file]).await?;
        assert!(text.contains("--pod-template") || text.contains(&file), "{wrong}: {text}");
        for word in words {
            assert!(text.contains(word), "{wrong}: {text}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_or_a_server_that_is_not_there_is_named() -> anyhow::Result<()> {
    let mut setup = Setup::new("nowhere", Pods::ByHand).await?;
    setup.workers = "nowhere".to_owned();
    let plane = setup.namespace.plane();
    let admin = plane.kubeconfig("admin")?;
    let cluster = setup.start(&admin, "http://127.0.0.1:1", &[]).await;
    match cluster {
        Ok(cluster) => in_log(&cluster, &["there is no namespace nowhere"]).await,
        Err(error) => assert!(format!("{error:#}").contains("there is no namespace nowhere"), "{error:#}"),
    }

    let setup = Setup::new("nobody", Pods::ByHand).await?;
    let token = setup.namespace.token("default").await?;
    let nobody = plane.write_kubeconfig("unreachable", "https://127.0.0.1:1", &token, setup.namespace.name())?;
    let cluster = setup.start(&nobody, "http://127.0.0.1:1", &[]).await?;
    in_log(&cluster, &["https://127.0.0.1:1", "cannot be reached"]).await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_make_no_pods_are_refused_with_the_reason() -> anyhow::Result<()> {
    let cluster = Cluster::start("refused", Pods::Kwok, &[]).await?;
    cluster.add("image", 1, &[("image", "Not An Image")]).await.unwrap_or_default();
    let mut redis = cluster.redis.connect().await?;
    let bare = [("type", "scale_up"), ("task_id", "bare"), ("image", "example.com/job:1")];
    crate::system::add(&mut redis, &bare).await?;
    let dead = eventually("both are dead letters", async || {
        let mut redis = cluster.redis.connect().await.ok()?;
        let dead = crate::system::entries(&mut redis, "otto:scale:events:dead").await.ok()?;
        (dead.len() == 2).then_some(dead)
    })
    .await;
    let text = |wanted: &str| {
        let fields: Vec<String> = dead
            .iter()
            .map(|(_, fields)| {
                fields.iter().map(|(name, value)| format!("{name}={} ", String::from_utf8_lossy(value))).collect()
            })
            .collect();
        fields.into_iter().find(|text: &String| text.contains(wanted)).unwrap_or_default()
    };
    assert!(text("Not An Image").contains("image"), "{}", text("Not An Image"));
    assert!(text("bare").contains("command"), "{}", text("bare"));

    // Names that are no label: hashed in the Pod's labels, in full in its annotation.
    let long = format!("Acme/{}", "x".repeat(100));
    cluster.add(&long, 1, &[]).await?;
    cluster.until(&long, TaskState::Succeeded).await;
    let pod = cluster.namespace.list_pods().await?.remove(0);
    let label = pod.metadata.labels.unwrap_or_default().remove("ottoscaler.io/task").unwrap_or_default();
    assert!(label.len() <= 63 && label.starts_with("Acme-xxx"), "{label}");
    assert_eq!(pod.metadata.annotations.unwrap_or_default().get("ottoscaler.io/task-id"), Some(&long));
    cluster.check_launches(1).await
}

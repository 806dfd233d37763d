//! The README's grpcurl lines, by the real grpcurl.

use std::process::{Output, Stdio};

use otto_testkit::program;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::system::{System, messages};

async fn grpcurl(arguments: &[&str], input: Option<&str>) -> anyhow::Result<Output> {
    let mut command = Command::new(program("grpcurl")?);
    command.arg("-plaintext").args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.kill_on_drop(true).spawn()?;
    if let (Some(text), Some(mut stdin)) = (input, child.stdin.take()) {
        stdin.write_all(text.as_bytes()).await?;
    }
    Ok(child.wait_with_output().await?)
}

async fn answer(arguments: &[&str], input: Option<&str>) -> anyhow::Result<String> {
    let output = grpcurl(arguments, input).await?;
    assert!(output.status.success(), "grpcurl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_can_try_every_server_with_grpcurl() -> anyhow::Result<()> {
    let system = System::start(&[]).await?;
    let (logs, scaler) = (system.logs.grpc_addr().to_owned(), system.scaler.grpc_addr().to_owned());

    let services = answer(&[&logs, "list"], None).await?;
    for service in ["LogStreamingService", "LogQueryService", "WorkerEventService"] {
        assert!(services.contains(&format!("ottoscaler.v1.{service}")), "{services}");
    }
    assert!(services.contains("grpc.health.v1.Health"), "{services}");
    let services = answer(&[&scaler, "list"], None).await?;
    assert!(services.contains("ottoscaler.v1.OttoscalerService"), "{services}");
    let described = answer(&[&logs, "describe", "ottoscaler.v1.LogEntry"], None).await?;
    assert!(described.contains("string worker_id = 1;"), "{described}");

    let registration = r#"{"worker_id":"w-1","task_id":"by-hand"}"#;
    let method = "ottoscaler.v1.LogStreamingService/RegisterWorker";
    let registered = answer(&["-d", registration, &logs, method], None).await?;
    assert!(registered.contains("sessionId"), "{registered}");
    let lines: String = (1..=3)
        .map(|n| format!(r#"{{"worker_id":"w-1","task_id":"by-hand","level":"INFO","message":"line {n}"}}"#))
        .collect();
    let method = "ottoscaler.v1.LogStreamingService/StreamLogs";
    let acknowledged = answer(&["-d", "@", &logs, method], Some(&lines)).await?;
    assert_eq!(acknowledged.matches("\"sequence\"").count(), 3, "{acknowledged}");
    assert_eq!(messages(&system.logs, "by-hand").await?, ["line 1", "line 2", "line 3"]);

    let refused = grpcurl(&["-d", "{}", &logs, "ottoscaler.v1.LogStreamingService/RegisterWorker"], None).await?;
    let text = String::from_utf8_lossy(&refused.stderr);
    assert!(text.contains("InvalidArgument") && text.contains("worker_id"), "{text}");

    let up = r#"{"task_id":"up","worker_count":2,"build_config":{"command":"[\"true\"]"}}"#;
    let scaled = answer(&["-d", up, &scaler, "ottoscaler.v1.OttoscalerService/ScaleUp"], None).await?;
    assert!(scaled.contains("\"processedCount\": 2"), "{scaled}");
    let again = answer(&["-d", up, &scaler, "ottoscaler.v1.OttoscalerService/ScaleUp"], None).await?;
    assert!(again.contains("ALREADY_PROCESSED"), "{again}");
    let health = answer(&["-d", "{}", &scaler, "grpc.health.v1.Health/Check"], None).await?;
    assert!(health.contains("SERVING") && !health.contains("NOT_SERVING"), "{health}");
    Ok(())
}

//! Tokens between a real client and a real server.

use crate::echo::{call, start_with};
use crate::wait::until;
use otto_service::auth::{ClientAuth, Scope, ServerAuth};
use otto_service::client::Channel;
use otto_service::grpc::Limits;
use std::path::Path;
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

fn client(token: &Path) -> ClientAuth {
    ClientAuth { auth_token_file: Some(token.into()) }
}

async fn echo(channel: &Channel) -> Result<(), Status> {
    let mut stream = call(channel, "Echo", futures::stream::iter(["x".to_owned()])).await?;
    stream.message().await.map(|_| ())
}

#[tokio::test]
async fn only_the_right_token_is_let_in_and_probes_need_none() {
    let dir = tempfile::tempdir().unwrap();
    let (right, wrong) = (dir.path().join("right"), dir.path().join("wrong"));
    std::fs::write(&right, "s3cret\n").unwrap();
    std::fs::write(&wrong, "guess\n").unwrap();
    let auth = ServerAuth { auth_token_file: Some(right.clone()), ..ServerAuth::default() };
    let server = start_with(Limits::default(), auth.policy(&[]).unwrap(), |server| server);

    let without = server.channel();
    let error = echo(&without).await.unwrap_err();
    assert_eq!(error.code(), Code::Unauthenticated);
    assert!(error.message().contains("authorization: Bearer"), "{error}");
    HealthClient::new(without.clone()).check(HealthCheckRequest::default()).await.unwrap();
    let mut reflection = tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient::new(without);
    let error = reflection.server_reflection_info(futures::stream::pending()).await.unwrap_err();
    assert_eq!(error.code(), Code::Unauthenticated);

    let error = echo(&server.channel_with(&client(&wrong))).await.unwrap_err();
    assert_eq!(error.code(), Code::Unauthenticated);
    assert!(!error.message().contains("s3cret") && !error.message().contains("guess"), "{error}");
    echo(&server.channel_with(&client(&right))).await.unwrap();
    echo(&server.channel_with(&auth.client())).await.unwrap();
}

#[tokio::test]
async fn a_limited_token_opens_its_service_and_reflection() {
    let dir = tempfile::tempdir().unwrap();
    let (full, weak) = (dir.path().join("full"), dir.path().join("weak"));
    std::fs::write(&full, "s3cret\n").unwrap();
    std::fs::write(&weak, "weak\n").unwrap();
    let auth = ServerAuth { auth_token_file: Some(full), ..ServerAuth::default() };
    let policy = auth.policy(&[]).unwrap();
    for (service, opens) in [(crate::echo::NAME, true), ("test.v1.Other", false)] {
        let policy = policy.clone().with_limited(&weak, "--worker-token-file", Scope::Service(service)).unwrap();
        let server = start_with(Limits::default(), policy, |server| server);
        let channel = server.channel_with(&client(&weak));
        match echo(&channel).await {
            Ok(()) => assert!(opens),
            Err(error) => {
                assert!(!opens && error.code() == Code::PermissionDenied, "{error}");
                let part = format!("good for {service} alone (--worker-token-file)");
                assert!(error.message().contains(&part), "{error}");
            }
        }
        HealthClient::new(channel.clone()).check(HealthCheckRequest::default()).await.unwrap();
        let mut reflection = tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient::new(channel);
        reflection.server_reflection_info(futures::stream::empty()).await.unwrap();
        echo(&server.channel_with(&auth.client())).await.unwrap();
    }
}

#[tokio::test]
async fn tokens_are_exchanged_without_a_restart_and_without_a_gap() {
    let dir = tempfile::tempdir().unwrap();
    let (servers, clients) = (dir.path().join("servers"), dir.path().join("clients"));
    std::fs::write(&servers, "old\n").unwrap();
    std::fs::write(&clients, "old\n").unwrap();
    let auth = ServerAuth { auth_token_file: Some(servers.clone()), ..ServerAuth::default() };
    let server = start_with(Limits::default(), auth.policy(&[]).unwrap(), |server| server);
    let channel = server.channel_with(&client(&clients));
    echo(&channel).await.unwrap();

    // The server accepts both …
    std::fs::write(&servers, "old\nnew\n").unwrap();
    let new = dir.path().join("new");
    std::fs::write(&new, "new\n").unwrap();
    let early = server.channel_with(&client(&new));
    until("the new token to be accepted", async || echo(&early).await.ok()).await;
    echo(&channel).await.unwrap();
    // … the client changes …
    std::fs::write(&clients, "new\n").unwrap();
    // … and once the old one is gone, the same channel is still let in.
    std::fs::write(&servers, "new\n").unwrap();
    let old = dir.path().join("old");
    std::fs::write(&old, "old\n").unwrap();
    let late = server.channel_with(&client(&old));
    until("the old token to be refused", async || echo(&late).await.err()).await;
    until("the client to use the new token", async || echo(&channel).await.ok()).await;
}

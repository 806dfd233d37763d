//! The admin endpoint over HTTP.

use crate::wait::within;
use otto_service::admin::Admin;
use otto_service::auth::ServerAuth;
use otto_service::drain::Drain;
use otto_service::{grpc, web};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

async fn get(address: SocketAddr, path: &str, header: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\n{header}connection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut response = Vec::new();
    // A refused connection may be reset after the answer.
    let _ = within("the response", stream.read_to_end(&mut response)).await;
    String::from_utf8(response).unwrap()
}

#[tokio::test]
async fn metrics_need_the_token_and_probes_do_not() {
    let token = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(token.path(), "s3cret").unwrap();
    let auth = ServerAuth { auth_token_file: Some(token.path().into()), ..ServerAuth::default() };
    let drain = Drain::new();
    let admin = Admin::new("1.2.3", drain.clone()).with_policy(auth.policy(&[]).unwrap());
    let readiness = admin.readiness("redis");
    let listener = grpc::bind("--admin-addr", "127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn({
        let (admin, drain) = (admin.clone(), drain.clone());
        async move { admin.serve(listener, drain).await }
    });

    assert!(get(address, "/livez", "").await.starts_with("HTTP/1.1 200"));
    let response = get(address, "/readyz", "").await;
    assert!(response.starts_with("HTTP/1.1 503") && response.contains("redis: is starting"), "{response}");
    readiness.ready();
    assert!(get(address, "/readyz", "").await.starts_with("HTTP/1.1 200"));

    assert!(get(address, "/metrics", "").await.starts_with("HTTP/1.1 401"));
    let response = get(address, "/metrics", "authorization: Bearer s3cret\r\n").await;
    assert!(response.starts_with("HTTP/1.1 200") && response.contains("openmetrics-text"), "{response}");
    assert!(response.contains("otto_build_info{version=\"1.2.3\"} 1"), "{response}");
    assert!(get(address, "/nothing", "authorization: Bearer s3cret\r\n").await.starts_with("HTTP/1.1 404"));

    drain.request();
    within("the end", server).await.unwrap().unwrap();
}

#[tokio::test]
async fn http_is_bounded_too() {
    let drain = Drain::new();
    let router = axum::Router::new().route("/hang", axum::routing::get(async || std::future::pending::<()>().await));
    let limits = web::Limits {
        max_connections: 2,
        header_timeout: Duration::from_millis(200),
        drain_timeout: Duration::from_millis(300),
    };
    let listener = grpc::bind("--http-addr", "127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(web::serve(router, listener, limits, drain.clone()));

    // Headers that do not come …
    let mut slow = TcpStream::connect(address).await.unwrap();
    slow.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
    let mut rest = Vec::new();
    let _ = within("the close of a slow client", slow.read_to_end(&mut rest)).await;
    // … more connections than allowed …
    let mut open = Vec::new();
    crate::wait::until("the refusal", async || {
        // Again, should one have been late with its headers too.
        for _ in 0..2 {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let _ = stream.write_all(b"GET /hang HTTP/1.1\r\nhost: x\r\n\r\n").await;
            open.push(stream);
        }
        get(address, "/", "").await.starts_with("HTTP/1.1 503").then_some(())
    })
    .await;
    // … and requests that do not end.
    drain.request();
    within("the end", server).await.unwrap().unwrap();
}

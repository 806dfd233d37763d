//! What a server does with clients that are too many, too slow or silent.

use crate::echo::{call, start, texts};
use crate::wait::{PATIENCE, Program, until, within};
use otto_service::grpc::Limits;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";

/// An HTTP/2 client that says hello and then nothing, and reads nothing.
pub(crate) async fn silent(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(PREFACE).await.unwrap();
    stream
}

async fn is_closed(stream: &mut TcpStream) -> bool {
    let mut buffer = [0; 1024];
    loop {
        match tokio::time::timeout(Duration::from_millis(50), stream.read(&mut buffer)).await {
            Ok(Ok(0) | Err(_)) => return true,
            Ok(Ok(_)) => {}
            Err(_) => return false,
        }
    }
}

#[tokio::test]
async fn more_connections_than_allowed_are_refused_and_the_others_keep_working() {
    let server = start(Limits { connections: 3, ..Limits::default() });
    let channel = server.channel();
    let (send, requests) = texts();
    send.send("one".to_owned()).await.unwrap();
    let mut echo = call(&channel, "Echo", requests).await.unwrap();
    assert_eq!(echo.message().await.unwrap().as_deref(), Some("one"));
    let (first, _second) = (silent(server.address).await, silent(server.address).await);

    for _ in 0..20 {
        let mut refused = TcpStream::connect(server.address).await.unwrap();
        let mut told = Vec::new();
        within("the refusal", refused.read_to_end(&mut told)).await.unwrap();
        assert!(told.ends_with(b"too many connections"), "{told:?}");
    }
    let error = HealthClient::new(server.channel()).check(HealthCheckRequest::default()).await.unwrap_err();
    assert!(otto_service::status::is_transient(&error), "{error:?}");

    send.send("two".to_owned()).await.unwrap();
    assert_eq!(within("the open stream", echo.message()).await.unwrap().as_deref(), Some("two"));

    drop(first);
    let mut late = HealthClient::new(server.channel());
    until("a free place", async || late.check(HealthCheckRequest::default()).await.ok()).await;
}

#[tokio::test]
async fn connections_that_never_speak_are_closed_and_idle_ones_are_not() {
    for millis in [200, 2_000, 20_000] {
        let limits = Limits { handshake_timeout: Duration::from_millis(millis), ..Limits::default() };
        let server = start(limits);
        let mut idle = silent(server.address).await;
        let mut silent = Vec::new();
        for said in ["", "PRI * HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r"] {
            let mut stream = TcpStream::connect(server.address).await.unwrap();
            let _ = stream.write_all(said.as_bytes()).await;
            silent.push((said, stream));
        }
        for (said, stream) in &mut silent {
            until(&format!("the close after {said:?}"), async || is_closed(stream).await.then_some(())).await;
        }
        // Its hello may have come too late.
        if !is_closed(&mut idle).await {
            return;
        }
    }
    panic!("a client that has said hello may be idle");
}

#[tokio::test]
async fn a_client_that_does_not_answer_pings_is_closed() {
    let limits = Limits {
        keepalive_interval: Duration::from_millis(200),
        keepalive_timeout: Duration::from_millis(200),
        ..Limits::default()
    };
    let server = start(limits);
    let mut client = silent(server.address).await;
    until("the close", async || is_closed(&mut client).await.then_some(())).await;
}

#[tokio::test]
async fn something_else_than_http2_is_closed_at_once() {
    let server = start(Limits::default());
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut rest = Vec::new();
    let _ = within("the close", stream.read_to_end(&mut rest)).await;
}

#[tokio::test]
async fn headers_over_the_limit_end_only_their_call() {
    let server = start(Limits::default());
    let channel = server.channel();
    let mut client = HealthClient::new(channel.clone());
    let mut request = tonic::Request::new(HealthCheckRequest::default());
    request.metadata_mut().insert("x-big", "x".repeat(30_000).parse().unwrap());
    client.check(request).await.unwrap_err();
    client.check(HealthCheckRequest::default()).await.unwrap();
}

/// More connections than descriptors: the accept loop must not spin, and must go on when some are free again.
#[tokio::test]
async fn running_out_of_descriptors_neither_spins_nor_ends_the_server() {
    let mut program = Program::start("bounds::program_with_few_descriptors", &[]);
    let address: SocketAddr = program.line_after("listening on ").parse().unwrap();
    let mut open = Vec::new();
    for _ in 0..120 {
        open.push(TcpStream::connect(address).await.unwrap());
    }
    let descriptors = format!("/proc/{}/fd", program.child.id());
    until("all descriptors in use", async || (std::fs::read_dir(&descriptors).unwrap().count() >= 48).then_some(()))
        .await;

    // A loop that spins uses a whole core; this one may use a fifth.
    let cpu = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", program.child.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        // In ticks of a hundredth of a second: proc(5), utime and stime.
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    };
    let (before, started) = (cpu(), Instant::now());
    tokio::time::sleep(Duration::from_secs(1)).await;
    let used = Duration::from_millis((cpu() - before) * 10);
    assert!(used < started.elapsed() / 5, "used {used:?} in {:?}", started.elapsed());

    drop(open);
    let endpoint = otto_service::client::Endpoint::new(&format!("http://{address}"), &Default::default()).unwrap();
    let mut client = HealthClient::new(endpoint.connect_lazy());
    until("service", async || client.check(HealthCheckRequest::default()).await.ok()).await;
}

/// Not a test by itself: the server of the test above.
#[tokio::test]
#[ignore = "a program for another test"]
async fn program_with_few_descriptors() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let server = start(Limits::default());
    let endpoint =
        otto_service::client::Endpoint::new(&format!("http://{}", server.address), &Default::default()).unwrap();
    let mut client = HealthClient::new(endpoint.connect_lazy());
    client.check(HealthCheckRequest::default()).await.unwrap();
    // Lowered once it runs: a server that begins with so few accepts fewer connections and keeps the rest free.
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = Some(48);
    setrlimit(Resource::Nofile, limit).unwrap();
    println!("listening on {}", server.address);
    let _ = tokio::time::timeout(2 * PATIENCE, server.ended).await;
}

/// Not a test by itself: a server that begins with few descriptors.
#[tokio::test]
#[ignore = "a program for another test"]
async fn program_that_begins_with_few_descriptors() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = Some(48);
    setrlimit(Resource::Nofile, limit).unwrap();
    let server = start(Limits::default());
    println!("listening on {}", server.address);
    let _ = tokio::time::timeout(2 * PATIENCE, server.ended).await;
}

#[tokio::test]
async fn few_descriptors_leave_some_for_files() {
    let mut program = Program::start("bounds::program_that_begins_with_few_descriptors", &[]);
    let address: SocketAddr = program.line_after("listening on ").parse().unwrap();
    let mut open = Vec::new();
    for _ in 0..36 {
        open.push(silent(address).await);
    }
    let mut refused = TcpStream::connect(address).await.unwrap();
    let mut told = Vec::new();
    within("the refusal", refused.read_to_end(&mut told)).await.unwrap();
    assert!(told.ends_with(b"too many connections"), "{told:?}");
}

/// HEADERS of a call to the health service, as HPACK of RFC 7541 without its dynamic table.
fn headers_of_a_call(end: bool, stream: u32) -> Vec<u8> {
    // :method POST, :scheme http, then literals for :path and :authority.
    let mut block = vec![0x83, 0x86];
    for (name, value) in [(0x04, "/grpc.health.v1.Health/Watch"), (0x01, "x")] {
        block.extend([name, value.len() as u8]);
        block.extend(value.as_bytes());
    }
    frame(1, if end { 0x4 } else { 0 }, stream, &block)
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Writes until the other side has had enough, at most `limit` bytes, and reads along. How much was written, and what
/// was read.
async fn flood(address: SocketAddr, limit: usize, mut next: impl FnMut() -> Vec<u8>) -> (usize, String) {
    let (mut read, mut write) = silent(address).await.into_split();
    let reader = tokio::spawn(async move {
        let mut told = Vec::new();
        let _ = read.read_to_end(&mut told).await;
        told
    });
    let mut written = 0;
    while written < limit && !reader.is_finished() {
        let frames = next();
        match tokio::time::timeout(PATIENCE, write.write_all(&frames)).await {
            Ok(Ok(())) => written += frames.len(),
            Ok(Err(_)) => break,
            Err(_) => panic!("the server neither reads nor closes"),
        }
    }
    drop(write);
    let told = within("the close", reader).await.unwrap();
    (written, String::from_utf8_lossy(&told).into_owned())
}

#[tokio::test]
async fn a_flood_of_resets_ends_its_own_connection_only() {
    let server = start(Limits::default());
    let channel = server.channel();
    let mut client = HealthClient::new(channel);
    client.check(HealthCheckRequest::default()).await.unwrap();
    let mut stream = 1;
    let (sent, told) = flood(server.address, 64 << 20, || {
        let mut frames = Vec::new();
        for _ in 0..1000 {
            frames.extend(headers_of_a_call(true, stream));
            frames.extend(frame(3, 0, stream, &8_u32.to_be_bytes()));
            stream += 2;
        }
        frames
    })
    .await;
    assert!(sent < 16 << 20, "the server took {sent} bytes of resets");
    assert!(told.contains("too_many_resets"), "{told:?}");
    client.check(HealthCheckRequest::default()).await.unwrap();
}

#[tokio::test]
async fn headers_without_end_end_their_own_connection_only() {
    let server = start(Limits::default());
    let mut client = HealthClient::new(server.channel());
    client.check(HealthCheckRequest::default()).await.unwrap();
    let mut begun = false;
    let (sent, told) = flood(server.address, 64 << 20, || {
        if !std::mem::replace(&mut begun, true) {
            return headers_of_a_call(false, 1);
        }
        // A literal header that is not indexed, 16,000 bytes long, in a CONTINUATION frame.
        let mut block = vec![0x00, 1, b'x', 0x7f];
        block.extend([0x81, 0x7c]);
        block.resize(6 + 16_000, b'y');
        frame(9, 0, 1, &block)
    })
    .await;
    assert!(sent < 16 << 20, "the server took {sent} bytes of headers");
    assert!(told.contains("too_many_continuations"), "{told:?}");
    client.check(HealthCheckRequest::default()).await.unwrap();
}

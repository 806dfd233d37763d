//! Draining.

use crate::bounds::silent;
use crate::echo::{call, start, texts};
use crate::wait::{PATIENCE, Program, until, within};
use otto_service::grpc::Limits;
use std::time::{Duration, Instant};

#[tokio::test]
async fn calls_that_end_are_waited_for() {
    let server = start(Limits { drain_timeout: PATIENCE, ..Limits::default() });
    let channel = server.channel();
    let (send, requests) = texts();
    send.send("before".to_owned()).await.unwrap();
    let mut echo = call(&channel, "Echo", requests).await.unwrap();
    echo.message().await.unwrap();
    server.drain.request();
    until("the port to be closed", async || tokio::net::TcpStream::connect(server.address).await.err()).await;
    send.send("after".to_owned()).await.unwrap();
    assert_eq!(within("the answer", echo.message()).await.unwrap().as_deref(), Some("after"));
    assert!(!server.ended.is_finished());
    drop(send);
    assert_eq!(within("the end", echo.message()).await.unwrap(), None);
    drop(channel);
    within("the server's end", server.ended).await.unwrap().unwrap();
}

#[tokio::test]
async fn clients_that_do_not_end_are_cut_at_the_deadline() {
    let timeout = Duration::from_millis(500);
    let server = start(Limits { drain_timeout: timeout, ..Limits::default() });
    let channel = server.channel();
    let _silent = silent(server.address).await;
    let (_open, requests) = texts();
    let mut hanging = call(&channel, "Hang", requests).await.unwrap();
    hanging.message().await.unwrap();
    let stuck = tokio::spawn(async move { call(&channel, "Stuck", texts().1).await });

    server.drain.request();
    let started = Instant::now();
    hanging.message().await.unwrap_err();
    within("the server's end", server.ended).await.unwrap().unwrap();
    assert!(started.elapsed() >= timeout, "ended after {:?}", started.elapsed());
    assert!(stuck.await.unwrap().is_err());
}

#[tokio::test]
async fn an_idle_server_ends_at_once() {
    let long = PATIENCE * 10;
    let server = start(Limits { drain_timeout: long, handshake_timeout: long, ..Limits::default() });
    let _open = tokio::net::TcpStream::connect(server.address).await.unwrap();
    let channel = server.channel();
    tonic_health::pb::health_client::HealthClient::new(channel.clone())
        .check(tonic_health::pb::HealthCheckRequest::default())
        .await
        .unwrap();
    server.drain.request();
    within("the server's end", server.ended).await.unwrap().unwrap();
}

#[tokio::test]
async fn the_first_signal_drains_and_the_second_ends() {
    use rustix::process::{Signal, kill_process};
    for (first, second) in [(Signal::TERM, Signal::TERM), (Signal::INT, Signal::TERM)] {
        let mut program = Program::start("drain::program_that_waits_for_signals", &[]);
        program.line_after("waiting");
        kill_process(program.pid(), first).unwrap();
        program.line_after("draining");
        kill_process(program.pid(), second).unwrap();
        program.line_after("aborted");
        assert!(program.child.wait().unwrap().success());
    }
}

/// Not a test by itself: the program of the test above.
#[tokio::test]
#[ignore = "a program for another test"]
async fn program_that_waits_for_signals() {
    let (drain, abort) = otto_service::drain::signals().unwrap();
    assert!(!drain.is_requested() && !abort.is_requested());
    println!("waiting");
    within("the first signal", drain.requested()).await;
    assert!(drain.is_requested() && !abort.is_requested());
    println!("draining");
    drop(drain);
    within("the second signal", abort.requested()).await;
    println!("aborted");
}

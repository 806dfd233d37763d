//! A program that cannot start says why, names the setting, and ends with a code other than 0.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::process::Output;

use otto_testkit::{LogIngest, binary};
use tokio::process::Command;

async fn start(program: &str, arguments: &[&str]) -> anyhow::Result<Output> {
    let output = Command::new(binary(program)?).args(arguments).kill_on_drop(true).output();
    Ok(tokio::time::timeout(otto_testkit::PATIENCE, output).await??)
}

fn refused(output: &Output, words: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "it started: {text}");
    for word in words {
        assert!(text.contains(word), "`{word}` is not in: {text}");
    }
    assert!(!text.contains("panicked"), "{text}");
}

#[tokio::test]
async fn wrong_settings_are_named() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let data = dir.path().to_str().expect("UTF-8");
    refused(&start("otto-log-ingest", &["--grpc-port", "1"]).await?, &["--grpc-port"]);
    refused(&start("otto-log-ingest", &["--grpc-addr", "somewhere"]).await?, &["--grpc-addr", "somewhere"]);
    refused(&start("otto-log-ingest", &["--retention-age", "soon"]).await?, &["--retention-age", "soon"]);
    refused(&start("otto-scaler", &["--driver", "docker"]).await?, &["--driver", "docker", "process"]);
    let redis = ["--driver", "process", "--redis-url", "http://x", "--data-dir", data];
    refused(&start("otto-scaler", &redis).await?, &["redis-url"]);
    refused(&start("otto-worker", &["run", "--log-server", "not a url", "--", "true"]).await?, &["log-server"]);
    refused(&start("otto", &["submit"]).await?, &["COMMAND"]);

    let file = dir.path().join("settings.toml");
    std::fs::write(&file, "grpc-adr = \"127.0.0.1:0\"\n")?;
    let path = file.to_str().expect("UTF-8");
    refused(&start("otto-log-ingest", &["--config", path]).await?, &["grpc-adr", "grpc-addr", path]);
    Ok(())
}

#[tokio::test]
async fn an_occupied_port_and_a_foreign_address_are_named() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let data = dir.path().to_str().expect("UTF-8");
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?.to_string();
    let arguments = ["--grpc-addr", &address, "--http-addr", "127.0.0.1:0", "--data-dir", data];
    refused(&start("otto-log-ingest", &arguments).await?, &[&address, "in use"]);
    drop(listener);
    let open = ["--grpc-addr", "0.0.0.0:0", "--http-addr", "127.0.0.1:0", "--data-dir", data];
    refused(&start("otto-log-ingest", &open).await?, &["--auth-token-file", "--insecure-no-auth"]);
    Ok(())
}

#[tokio::test]
async fn a_data_directory_that_cannot_be_used_is_named() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let running = LogIngest::start(dir.path(), &[]).await?;
    let data = dir.path().join("log-data");
    let addresses = ["--grpc-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0", "--data-dir"];
    let with = |path: &str| [&addresses[..], &[path]].concat().iter().map(ToString::to_string).collect::<Vec<_>>();
    let data_text = data.to_str().expect("UTF-8");
    let run = |path: String| async move {
        let arguments = with(&path);
        start("otto-log-ingest", &arguments.iter().map(String::as_str).collect::<Vec<_>>()).await
    };
    refused(&run(data_text.to_owned()).await?, &[data_text, "in use by process"]);
    drop(running);

    // Not a directory at all.
    let file = dir.path().join("file");
    std::fs::write(&file, "")?;
    let path = file.to_str().expect("UTF-8").to_owned();
    refused(&run(path.clone()).await?, &[&path]);

    // Root may write anywhere, so this needs another user or a kind of file system that refuses.
    if !rustix::process::geteuid().is_root() {
        let locked = dir.path().join("locked");
        std::fs::create_dir(&locked)?;
        std::fs::set_permissions(&locked, std::fs::Permissions::from_mode(0o500))?;
        let path = locked.to_str().expect("UTF-8").to_owned();
        refused(&run(path.clone()).await?, &[&path, "ermission"]);
    }
    Ok(())
}

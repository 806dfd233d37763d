//! The README's first command.

use otto_testkit::binary;
use tokio::process::Command;

#[tokio::test]
async fn dev_once_runs_the_demo_and_stores_its_lines() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let xtask = binary("xtask")?;
    let mut command = Command::new(xtask);
    command.args(["dev", "--once", "--dir"]).arg(dir.path());
    command.env("CARGO_MANIFEST_DIR", concat!(env!("CARGO_MANIFEST_DIR"), "/../../xtask"));
    let output = tokio::time::timeout(otto_testkit::PATIENCE * 5, command.kill_on_drop(true).output()).await??;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}\n{err}");
    assert!(out.contains("100 lines, and all are stored"), "{out}\n{err}");
    Ok(())
}

//! `cargo xtask images`: the images of docker/, from static binaries built here.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use anyhow::{Context, bail};

use crate::{tools, workspace};

const TARGET: &str = "x86_64-unknown-linux-gnu";
const IMAGES: [&str; 3] = ["otto-scaler", "otto-worker", "otto-log-ingest"];
const PACKAGES: [&str; 4] = ["otto-scaler", "otto-worker", "otto-log-ingest", "otto-cli"];

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Tag of the images.
    #[arg(long, default_value = "dev")]
    tag: String,
    /// Builds only the static binaries and prints where they are.
    #[arg(long)]
    binaries_only: bool,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let binaries = static_binaries()?;
    if options.binaries_only {
        println!("{}", binaries.display());
        return Ok(());
    }
    if tools::find("docker").is_none() {
        bail!("docker is not installed (Debian and Ubuntu: apt-get install docker.io)");
    }
    for image in IMAGES {
        build_image(image, &options.tag, &binaries)?;
    }
    Ok(())
}

/// Builds the programs with the C library linked in; returns their folder.
pub(crate) fn static_binaries() -> anyhow::Result<PathBuf> {
    let mut build = workspace::cargo();
    build.args(["build", "--release", "--locked", "--target", TARGET]);
    for package in PACKAGES {
        build.args(["-p", package]);
    }
    let flags = env::var("RUSTFLAGS").unwrap_or_default();
    build.env("RUSTFLAGS", format!("{flags} -C target-feature=+crt-static"));
    eprintln!("xtask: building static binaries");
    tools::run(&mut build)?;
    Ok(workspace::target().join(TARGET).join("release"))
}

/// The final stage of an image's Dockerfile stays as it is; its builder stage is replaced by what was built here.
fn build_image(image: &str, tag: &str, binaries: &Path) -> anyhow::Result<()> {
    let source = workspace::root().join("docker").join(format!("{image}.Dockerfile"));
    let text = fs::read_to_string(&source).with_context(|| source.display().to_string())?;
    let last = text.rfind("\nFROM scratch").with_context(|| format!("{}: no final scratch stage", source.display()))?;
    let stage = text[last + 1..].replace("--from=build ", "").replace(" /out/", " ");
    let context = workspace::target().join("images").join(image);
    if context.exists() {
        fs::remove_dir_all(&context)?;
    }
    fs::create_dir_all(&context)?;
    fs::write(context.join("Dockerfile"), &stage)?;
    for program in ["otto-scaler", "otto-worker", "otto-log-ingest", "otto"] {
        if stage.contains(&format!("COPY {program} ")) {
            fs::copy(binaries.join(program), context.join(program))?;
        }
    }
    // Owned directories for the non-root user: COPY of an empty folder makes them in an image without a shell.
    fs::create_dir_all(context.join("empty"))?;
    let name = format!("ottoscaler/{image}:{tag}");
    tools::run(Command::new("docker").args(["build", "--quiet", "--tag", &name]).arg(&context))?;
    println!("built {name}");
    Ok(())
}

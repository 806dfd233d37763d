//! `cargo xtask images`: the images of docker/, from static binaries built here.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use anyhow::{Context, bail};
use sha2::{Digest, Sha256};

use crate::interrupt::Interrupt;
use crate::{docker, tools, workspace};

/// How all images are built; the Dockerfiles say the same. Relocations, packed, are a tenth as many bytes.
const FLAGS: &str = "-C target-feature=+crt-static -C link-arg=-Wl,-z,pack-relative-relocs";
const PACKAGES: [&str; 4] = ["otto-scaler", "otto-worker", "otto-log-ingest", "otto-cli"];

/// An image of docker/.
pub(crate) struct Image {
    /// Its name is `ottoscaler/NAME`.
    pub(crate) name: &'static str,
    /// `docker/FILE.Dockerfile`.
    file: &'static str,
    /// Stage of that file; absent: the only one.
    stage: Option<&'static str>,
    programs: &'static [&'static str],
    /// Bytes it may have when built with the profile `release`.
    limit: Option<u64>,
}

/// What Kubernetes runs.
pub(crate) const SCALER: Image = Image {
    name: "otto-scaler",
    file: "otto-scaler",
    stage: Some("kubernetes"),
    programs: &["otto-scaler"],
    limit: Some(20_000_000),
};
pub(crate) const LOG_INGEST: Image = Image {
    name: "otto-log-ingest",
    file: "otto-log-ingest",
    stage: None,
    programs: &["otto-log-ingest"],
    limit: Some(20_000_000),
};
pub(crate) const WORKER: Image =
    Image { name: "otto-worker", file: "otto-worker", stage: None, programs: &["otto-worker"], limit: Some(8_000_000) };
pub(crate) const CLI: Image = Image { name: "otto", file: "otto", stage: None, programs: &["otto"], limit: None };
/// For compose: the jobs are processes in its container.
const SCALER_PROCESS: Image = Image {
    name: "otto-scaler-process",
    file: "otto-scaler",
    stage: Some("process"),
    programs: &["otto-scaler", "otto-worker", "otto"],
    limit: None,
};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Tag of the images.
    #[arg(long, default_value = "dev")]
    tag: String,
    /// Builds only the static binaries and prints where they are.
    #[arg(long)]
    binaries_only: bool,
    /// `quick` builds in a fraction of the time, for trying things out.
    #[arg(long, value_name = "PROFILE", default_value = "release")]
    profile: Profile,
}

/// How the programs are built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Profile {
    /// Small and fast.
    Release,
    /// Built soon.
    Quick,
}

impl Profile {
    fn name(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Quick => "quick",
        }
    }
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    check_system(env::consts::OS)?;
    let interrupt = Interrupt::install()?;
    if !options.binaries_only {
        docker::ensure()?;
    }
    let binaries = static_binaries(options.profile, &interrupt)?;
    if options.binaries_only {
        println!("{}", binaries.display());
        return Ok(());
    }
    for image in [&SCALER, &SCALER_PROCESS, &LOG_INGEST, &WORKER, &CLI] {
        let folder = Folder::prepare(image, &binaries)?;
        let reference = format!("ottoscaler/{}:{}", image.name, options.tag);
        folder.build(&reference)?;
        let bytes = docker::image_bytes(&reference)?;
        println!("built {reference} ({:.1} MB)", bytes as f64 / 1e6);
        if let Some(limit) = image.limit.filter(|limit| options.profile == Profile::Release && bytes > *limit) {
            bail!("{reference} has {bytes} bytes, and may have {limit}");
        }
    }
    Ok(())
}

/// Whether this system's programs are what containers run.
///
/// # Errors
/// Says what does it instead.
pub(crate) fn check_system(os: &str) -> anyhow::Result<()> {
    if os != "linux" {
        bail!(
            "images are made of programs that are built on this machine, for its processor: that takes Linux, and this is \
             {os}. Let the container engine build them: docker build -f docker/NAME.Dockerfile -t ottoscaler/NAME:dev . \
             (README.md and docs/operations/kubernetes.md say how to go on)"
        );
    }
    Ok(())
}

/// Builds an image under a tag that is made of its content, unless it is there; returns its reference.
pub(crate) fn ensure(image: &Image, binaries: &Path) -> anyhow::Result<String> {
    let folder = Folder::prepare(image, binaries)?;
    let reference = format!("ottoscaler/{}:{}", image.name, folder.tag()?);
    if docker::has_image(&reference)? {
        return Ok(reference);
    }
    eprintln!("xtask: building {reference}");
    folder.build(&reference)?;
    docker::remove_older(&reference)?;
    Ok(reference)
}

/// Builds the programs with the C library linked in; returns their folder.
pub(crate) fn static_binaries(profile: Profile, interrupt: &Interrupt) -> anyhow::Result<PathBuf> {
    let target = host()?;
    let mut build = workspace::cargo();
    build.args(["build", "--profile", profile.name(), "--locked", "--target", &target]);
    for package in PACKAGES {
        build.args(["-p", package]);
    }
    let flags = env::var("RUSTFLAGS").unwrap_or_default();
    build.env("RUSTFLAGS", format!("{flags} {FLAGS}"));
    eprintln!("xtask: building static binaries (profile {}; the first time takes minutes)", profile.name());
    interrupt.run(&mut build)?;
    Ok(workspace::target().join(target).join(profile.name()))
}

/// The target triple of this machine: static linking is asked for with its name, so that build scripts stay dynamic.
fn host() -> anyhow::Result<String> {
    let about = tools::output(Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into())).arg("-vV"))?;
    let host = about.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc -vV names no host")?;
    Ok(host.to_owned())
}

/// A folder from which an image is built.
struct Folder<'a> {
    image: &'a Image,
    dir: PathBuf,
}

impl<'a> Folder<'a> {
    /// The final stages of an image's Dockerfile stay as they are; its builder stage is replaced by what was built here.
    fn prepare(image: &'a Image, binaries: &Path) -> anyhow::Result<Self> {
        let source = workspace::root().join("docker").join(format!("{}.Dockerfile", image.file));
        let text = fs::read_to_string(&source).with_context(|| source.display().to_string())?;
        let stages = final_stages(&text, image.stage).with_context(|| source.display().to_string())?;
        let dir = workspace::target().join("images").join(image.name);
        if dir.exists() {
            fs::remove_dir_all(&dir)?;
        }
        fs::create_dir_all(&dir)?;
        fs::write(dir.join("Dockerfile"), stages)?;
        for program in image.programs {
            fs::copy(binaries.join(program), dir.join(program)).with_context(|| (*program).to_owned())?;
        }
        // Owned directories for the non-root user: COPY of an empty folder makes them in an image without a shell.
        fs::create_dir_all(dir.join("empty"))?;
        Ok(Self { image, dir })
    }

    fn build(&self, reference: &str) -> anyhow::Result<()> {
        docker::build(&self.dir, reference)
    }

    /// The same for the same content, and for no other.
    fn tag(&self) -> anyhow::Result<String> {
        let mut hash = Sha256::new();
        for file in self.image.programs.iter().chain(&["Dockerfile"]) {
            let bytes = fs::read(self.dir.join(file))?;
            hash.update(bytes.len().to_le_bytes());
            hash.update(bytes);
        }
        Ok(hex(&hash.finalize()[..6]))
    }
}

/// What comes after the builder stage, up to the end of `stage`, reading from the folder in the place of the builder.
fn final_stages(text: &str, stage: Option<&str>) -> anyhow::Result<String> {
    let first = text.find("\nFROM scratch").context("no final scratch stage")?;
    let mut stages = &text[first + 1..];
    if let Some(stage) = stage {
        let header = stages.find(&format!(" AS {stage}\n")).with_context(|| format!("no stage {stage}"))?;
        let end = stages[header..].find("\nFROM ").map_or(stages.len(), |end| header + end + 1);
        stages = &stages[..end];
    }
    Ok(stages.replace("--from=build ", "").replace(" /out/", " "))
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "FROM rust AS build\nRUN x\n\nFROM scratch AS one\nCOPY --from=build /out/a /a\n\nFROM one AS two\n\
                        COPY --from=build --chown=1:1 /out/b /b\n";

    #[test]
    fn other_systems_are_told_what_builds_images_there() {
        assert!(check_system("linux").is_ok());
        let error = check_system("macos").unwrap_err().to_string();
        assert!(error.contains("macos") && error.contains("docker build -f docker/"), "{error}");
    }

    #[test]
    fn the_dockerfiles_build_with_the_same_flags() {
        for image in [&SCALER, &SCALER_PROCESS, &LOG_INGEST, &WORKER, &CLI] {
            let file = workspace::root().join("docker").join(format!("{}.Dockerfile", image.file));
            let text = fs::read_to_string(&file).unwrap();
            assert!(text.contains(&format!("ENV RUSTFLAGS=\"{FLAGS}\"\n")), "{}", file.display());
        }
    }

    #[test]
    fn a_stage_is_taken_with_those_before_it() {
        assert_eq!(final_stages(FILE, Some("one")).unwrap(), "FROM scratch AS one\nCOPY a /a\n\n");
        let two = final_stages(FILE, Some("two")).unwrap();
        assert!(two.starts_with("FROM scratch AS one\n") && two.ends_with("COPY --chown=1:1 b /b\n"), "{two}");
        assert!(final_stages(FILE, Some("three")).is_err());
        assert!(final_stages("FROM rust\n", None).is_err());
    }
}

//! proto/ → crates/otto-proto/src/generated, with a pure-Rust compiler.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use prost::Message;
use prost_types::FileDescriptorSet;

use crate::workspace;

mod frozen;

const PACKAGE_DIR: &str = "ottoscaler/v1";

/// Writes the generated code, or with `check` compares it with what is committed.
///
/// With `freeze` the frozen descriptor set is written too: everything not marked as "Not yet frozen." in its comment may
/// never change again (`crates/otto-proto/tests/it/compatibility.rs`).
pub(crate) fn run(check: bool, freeze: bool) -> anyhow::Result<()> {
    let root = workspace::root();
    let committed = root.join("crates/otto-proto/src/generated");
    let scratch = workspace::target().join("codegen");
    if scratch.exists() {
        fs::remove_dir_all(&scratch)?;
    }
    fs::create_dir_all(&scratch)?;
    generate(&root.join("proto"), &scratch)?;

    let fresh = read_all(&scratch)?;
    if check {
        let old = read_all(&committed)?;
        let stale: Vec<_> = fresh
            .keys()
            .chain(old.keys())
            .filter(|name| fresh.get(*name) != old.get(*name))
            .map(|name| name.display().to_string())
            .collect();
        if !stale.is_empty() {
            bail!("generated code is not up to date: {}; run `cargo xtask codegen`", stale.join(", "));
        }
        println!("generated code is up to date");
        return Ok(());
    }
    if committed.exists() {
        fs::remove_dir_all(&committed)?;
    }
    fs::create_dir_all(&committed)?;
    if freeze {
        let set = FileDescriptorSet::decode(fresh[Path::new("descriptor_set.bin")].as_slice())?;
        let target = root.join("crates/otto-proto/frozen/descriptor_set.bin");
        fs::write(&target, frozen::part_of(set).encode_to_vec())?;
        println!("froze {}", target.strip_prefix(&root)?.display());
    }
    for (name, bytes) in &fresh {
        fs::write(committed.join(name), bytes)?;
        println!("wrote {}", committed.join(name).strip_prefix(&root)?.display());
    }
    Ok(())
}

fn generate(proto: &Path, out: &Path) -> anyhow::Result<()> {
    let mut files: Vec<PathBuf> =
        fs::read_dir(proto.join(PACKAGE_DIR))?.map(|entry| Ok(entry?.path())).collect::<anyhow::Result<_>>()?;
    files.retain(|path| path.extension().is_some_and(|ext| ext == "proto"));
    files.sort();
    // With source information, so that reflection shows the comments to `grpcurl describe`.
    let mut compiler = protox::Compiler::new([proto])?;
    compiler.include_source_info(true).include_imports(true).open_files(&files)?;
    let descriptors = compiler.file_descriptor_set();
    fs::write(out.join("descriptor_set.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .out_dir(out)
        .bytes(".ottoscaler.v1")
        .type_attribute(".", "#[allow(missing_docs)]")
        .server_mod_attribute(".", "#[allow(missing_docs)]")
        .client_mod_attribute(".", "#[allow(missing_docs)]")
        .compile_fds(descriptors)
        .context("generating code")?;
    Ok(())
}

fn read_all(dir: &Path) -> anyhow::Result<BTreeMap<PathBuf, Vec<u8>>> {
    let mut all = BTreeMap::new();
    if dir.exists() {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            all.insert(PathBuf::from(entry.file_name()), fs::read(entry.path())?);
        }
    }
    Ok(all)
}

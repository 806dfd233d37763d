//! `cargo xtask tidy`: the habits of this repository that no compiler checks.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::bail;

use crate::{tools, workspace};

/// Production lines a file may have without a reason written at its top.
const LONGEST_FILE: usize = 500;

/// Lists what is out of order and fails if anything is.
pub(crate) fn run() -> anyhow::Result<()> {
    let root = workspace::root();
    let files = tools::output(Command::new("git").args(["ls-files", "-co", "--exclude-standard"]).current_dir(&root))?;
    let mut faults = Vec::new();
    for name in files.lines().filter(|name| root.join(name).is_file()) {
        let Ok(text) = fs::read_to_string(root.join(name)) else { continue };
        check_text(name, &text, &mut faults);
        if name.ends_with(".rs") && !name.contains("/generated/") {
            check_rust(name, &text, &mut faults);
        }
    }
    if !faults.is_empty() {
        bail!("not tidy:\n  {}", faults.join("\n  "));
    }
    println!("tidy");
    Ok(())
}

fn check_text(name: &str, text: &str, faults: &mut Vec<String>) {
    for (number, line) in text.lines().enumerate() {
        let conflict = ["<<<<<<<", ">>>>>>>"].iter().any(|mark| line.starts_with(&format!("{mark} ")));
        if conflict {
            faults.push(format!("{name}:{}: a merge conflict", number + 1));
        }
        if line.ends_with([' ', '\t']) && !name.ends_with(".md") && !name.contains("/generated/") {
            faults.push(format!("{name}:{}: white space at the end", number + 1));
        }
    }
    if !text.is_empty() && !text.ends_with('\n') {
        faults.push(format!("{name}: no newline at the end"));
    }
}

fn check_rust(name: &str, text: &str, faults: &mut Vec<String>) {
    let path = Path::new(name);
    if path.file_name().is_some_and(|file| file == "mod.rs") {
        faults.push(format!("{name}: use foo.rs beside foo/ in the place of mod.rs"));
    }
    if path.file_stem().is_some_and(|stem| ["utils", "common", "helpers", "misc"].iter().any(|bad| stem == *bad)) {
        faults.push(format!("{name}: name the concept"));
    }
    if path.components().any(|part| ["tests", "tests.rs"].iter().any(|test| part.as_os_str() == *test)) {
        return;
    }
    let production = text.lines().take_while(|line| !line.starts_with("#[cfg(test)]")).count();
    let reason = text.lines().take_while(|line| line.starts_with("//!")).any(|line| line.contains("Long because"));
    if production > LONGEST_FILE && !reason {
        faults.push(format!("{name}: {production} production lines; split it, or say `Long because …` at its top"));
    }
}

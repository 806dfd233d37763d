//! The `--config` file.

use super::Exit;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A file of settings, read but not yet matched with the program's arguments.
pub(super) struct File {
    pub(super) path: PathBuf,
    /// By flag name (kebab-case).
    pub(super) values: BTreeMap<String, toml::Value>,
}

impl File {
    pub(super) fn read(path: &Path) -> Result<Self, Exit> {
        let shown = path.display();
        let text = std::fs::read_to_string(path)
            .map_err(|error| Exit::usage(format!("cannot read the settings file {shown} (--config): {error}")))?;
        let table: toml::Table = toml::from_str(&text)
            .map_err(|error| Exit::usage(format!("the settings file {shown} (--config) is not valid TOML: {error}")))?;
        let mut values = BTreeMap::new();
        for (key, value) in table {
            let flag = key.replace('_', "-");
            if values.insert(flag.clone(), value).is_some() {
                return Err(Exit::usage(format!("the settings file {shown} (--config) gives '{flag}' twice")));
            }
        }
        Ok(File { path: path.to_owned(), values })
    }

    /// Refuses keys that are no settings of this program.
    pub(super) fn check_keys(&self, accepted: &[String]) -> Result<(), Exit> {
        let Some(unknown) = self.values.keys().find(|key| !accepted.contains(key)) else { return Ok(()) };
        let closest = accepted
            .iter()
            .map(|key| (strsim::jaro_winkler(key, unknown), key))
            .filter(|(likeness, _)| *likeness > 0.8)
            .max_by(|a, b| a.0.total_cmp(&b.0));
        let hint = closest.map(|(_, key)| format!(" (did you mean '{key}'?)")).unwrap_or_default();
        Err(Exit::usage(format!(
            "unknown key '{unknown}' in the settings file {} (--config){hint}\n\n  accepted keys: {}",
            self.path.display(),
            accepted.join(", ")
        )))
    }
}

/// The values of a key as they would be typed after the flag. A table gives `KEY=VALUE` pairs.
///
/// # Errors
/// Says what was found, for a message that names the key.
pub(super) fn texts(value: &toml::Value) -> Result<Vec<String>, String> {
    match value {
        toml::Value::Array(items) => items.iter().map(scalar).collect(),
        toml::Value::Table(table) => table.iter().map(|(key, value)| Ok(format!("{key}={}", scalar(value)?))).collect(),
        other => Ok(vec![scalar(other)?]),
    }
}

fn scalar(value: &toml::Value) -> Result<String, String> {
    match value {
        toml::Value::String(text) => Ok(text.clone()),
        toml::Value::Integer(number) => Ok(number.to_string()),
        toml::Value::Float(number) => Ok(number.to_string()),
        toml::Value::Boolean(flag) => Ok(flag.to_string()),
        toml::Value::Datetime(time) => Ok(time.to_string()),
        toml::Value::Array(_) => Err("a list inside a list".to_owned()),
        toml::Value::Table(_) => Err("a table inside a list or table".to_owned()),
    }
}

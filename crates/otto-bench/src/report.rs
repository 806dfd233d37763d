//! A table for people, a file for tools.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};

/// Figures of one benchmark.
pub(crate) struct Report {
    name: &'static str,
    rows: Vec<(String, f64, &'static str, Option<String>)>,
}

impl Report {
    pub(crate) fn new(name: &'static str) -> Self {
        println!("\n{name}");
        Self { name, rows: Vec::new() }
    }

    /// Adds a figure with its unit, and the goal it is held against.
    pub(crate) fn row(&mut self, what: impl Into<String>, value: f64, unit: &'static str, goal: Option<String>) {
        let what = what.into();
        let shown = match value {
            value if value.abs() >= 1_000.0 => format!("{value:.0}"),
            value => format!("{value:.2}"),
        };
        let goal_text = goal.as_deref().map(|goal| format!("  (goal {goal})")).unwrap_or_default();
        println!("  {what:<58} {shown:>12} {unit}{goal_text}");
        self.rows.push((what, value, unit, goal));
    }

    pub(crate) fn write(&self, out: &Path) -> anyhow::Result<()> {
        fs::create_dir_all(out)?;
        let mut all = Map::new();
        for (what, value, unit, goal) in &self.rows {
            all.insert(what.clone(), json!({ "value": value, "unit": unit, "goal": goal }));
        }
        let path = out.join(format!("{}.json", self.name));
        fs::write(&path, serde_json::to_string_pretty(&Value::Object(all))? + "\n")?;
        println!("  → {}", path.display());
        Ok(())
    }
}

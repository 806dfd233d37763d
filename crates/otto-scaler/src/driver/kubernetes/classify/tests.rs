//! Statuses of real Pods, recorded from Kubernetes 1.34 (containerd, cgroup v1) with `recorded/record.py`; and made ones,
//! after Kubernetes' documentation and sources, where one node alone cannot provoke it.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn recorded(name: &str) -> SeenPod {
    let path = format!("{}/src/driver/kubernetes/classify/recorded/{name}.json", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn made(pod: Value) -> SeenPod {
    serde_json::from_value(pod).unwrap()
}

/// `STATE [CLASS[!|~]: MESSAGE]`: `!` is hopeless, `~` usual; `+`: it has begun; `.`: nothing more will be sent.
fn told(life: &Life) -> String {
    let began = if life.started_at.is_some() { "+" } else { "" };
    let drained = if life.drained { "." } else { "" };
    let outcome = |outcome: &Outcome| {
        let code = outcome.exit_code.map(|code| format!(" {code}")).unwrap_or_default();
        let signal = outcome.signal.map(|signal| format!("/{signal}")).unwrap_or_default();
        format!("{}{code}{signal}: {}", outcome.class.as_str(), outcome.message)
    };
    match &life.state {
        State::Created { waiting: None } => format!("created{began}{drained}"),
        State::Created { waiting: Some(waiting) } => {
            let mark = [("!", waiting.hopeless), ("~", waiting.usual)].into_iter().filter(|(_, is)| *is);
            let mark: String = mark.map(|(mark, _)| mark).collect();
            format!("waiting{began}{drained} {mark}{}", outcome(&waiting.outcome))
        }
        State::Running => format!("running{began}{drained}"),
        State::Ended { at, outcome: how } => {
            assert!(*at > 1_700_000_000_000, "no time: {at}");
            format!("ended{began}{drained} {}", outcome(how))
        }
        State::Gone => "gone".to_owned(),
    }
}

/// Name, whether this was the last that the API server told of it, and what is to be told of it.
const RECORDED: &[(&str, bool, &str)] = &[];

#[test]
fn what_happened_to_real_pods() {
    let mut wrong = Vec::new();
    for (name, deleted, expected) in RECORDED {
        let told = told(&classify(&recorded(name), *deleted));
        if told != *expected {
            wrong.push(format!("    (\"{name}\", {deleted}, r#\"{told}\"#),"));
        }
    }
    assert!(wrong.is_empty(), "told otherwise:\n{}", wrong.join("\n"));
}

//! An event that cannot be applied is told with its reason, and delays nobody.

use otto_testkit::eventually;

use crate::system::{System, add, entries};

const DEAD: &str = "otto:scale:events:dead";

#[tokio::test(flavor = "multi_thread")]
async fn every_malformed_event_is_told_while_good_ones_pass() -> anyhow::Result<()> {
    let system = System::start(&["--max-workers", "8"]).await?;
    let mut redis = system.redis.connect().await?;
    let garbage = "x".repeat(1 << 20);
    // Fields of the event, and a word its reason must hold: the name of the field.
    let malformed: Vec<(Vec<(&str, &str)>, &str)> = vec![
        (vec![("task_id", "no-type")], "type"),
        (vec![("type", "explode"), ("task_id", "a")], "type"),
        (vec![("type", "scale_up"), ("task_id", "a"), ("pod_count", "many")], "pod_count"),
        (vec![("type", "scale_up"), ("task_id", "a"), ("pod_count", "-1")], "pod_count"),
        (vec![("type", "scale_up"), ("task_id", "a"), ("pod_count", "99999999")], "pod_count"),
        (vec![("type", "scale_down"), ("task_id", "a")], "pod_count"),
        (vec![("type", "scale_up"), ("task_id", "a"), ("pod_count", "1"), ("worker_count", "2")], "worker_count"),
        (vec![("type", "scale_up"), ("task_id", "a"), ("job_id", "b")], "job_id"),
        (vec![("type", "scale_up"), ("task_id", "a"), ("command", "ls -l")], "command"),
        (vec![("type", "scale_up"), ("task_id", "a"), ("command", "[1]")], "command"),
        (vec![("type", "scale_up"), ("task_id", "a"), ("env", r#"{"OTTO_X":"1"}"#)], "OTTO_X"),
        (vec![("type", "scale_up"), ("task_id", "a"), ("priority", "high")], "priority"),
        (vec![("type", "scale_up"), ("task_id", "a"), ("timeout_seconds", "-5")], "timeout_seconds"),
        (vec![("type", "scale_up"), ("task_id", "a"), ("payload", "{")], "payload"),
        (vec![("type", "scale_up"), ("task_id", &garbage)], "event"),
        (vec![(&garbage, "v")], "event"),
    ];
    for (n, (fields, _)) in malformed.iter().enumerate() {
        add(&mut redis, fields).await?;
        let good = [("type", "scale_up"), ("task_id", &format!("good-{n}") as &str), ("command", r#"["true"]"#)];
        add(&mut redis, &good).await?;
    }
    for n in 0..malformed.len() {
        system.ended(&format!("good-{n}")).await?;
    }
    let count = malformed.len();
    let mut dead = eventually("every malformed event is a dead letter", || {
        let mut redis = redis.clone();
        async move {
            let dead = entries(&mut redis, DEAD).await.expect("XRANGE");
            (dead.len() == count).then_some(dead)
        }
    })
    .await;
    // They are written as they are decided; those that need their task's record come a little later.
    dead.sort_by_key(|(_, fields)| {
        let id = String::from_utf8_lossy(&fields["entry_id"]).into_owned();
        let (millis, sequence) = id.split_once('-').expect("an entry's id");
        (millis.parse::<u64>().expect("milliseconds"), sequence.parse::<u64>().expect("a number"))
    });
    for ((_, fields), (event, word)) in dead.iter().zip(&malformed) {
        let reason = String::from_utf8_lossy(&fields["reason"]);
        let shown = format!("{:.200}", format!("{event:?}"));
        assert!(reason.contains(word), "{shown}: `{reason}` does not name {word}");
        assert!(reason.len() < 1_000, "{shown}: the reason is {} bytes long", reason.len());
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_can_be_replayed() -> anyhow::Result<()> {
    let system = System::start(&[]).await?;
    let mut redis = system.redis.connect().await?;
    add(&mut redis, &[("type", "scale_up"), ("task_id", "later"), ("pod_count", "many")]).await?;
    let listed = eventually("it is listed", || async {
        let out = system.otto(&["--output", "json", "dead-letters", "list"]).await.expect("otto");
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        text.contains("later").then_some(text)
    })
    .await;
    assert!(listed.contains("pod_count"), "{listed}");
    let id = entries(&mut redis, DEAD).await?[0].0.clone();
    let out = system.otto(&["dead-letters", "replay", &id]).await?;
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    // It is as wrong as before, so it is a dead letter again: under a new id.
    eventually("it is a dead letter again", || {
        let (mut redis, id) = (redis.clone(), id.clone());
        async move {
            let dead = entries(&mut redis, DEAD).await.expect("XRANGE");
            (dead.len() == 1 && dead[0].0 != id).then_some(())
        }
    })
    .await;
    Ok(())
}

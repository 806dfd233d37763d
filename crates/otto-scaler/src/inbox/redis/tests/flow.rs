//! What becomes of events.

use otto_testkit::eventually_progressing;

use super::*;

#[tokio::test]
async fn events_are_applied_in_order_and_acknowledged() {
    let world = World::new().await;
    let before = world.add("type scale_up task_id a pod_count 2").await;
    let mut reader = world.start();
    reader.serving().await;
    let middle = world.add("type scale_up target_replicas 3 job_id a").await;
    let last = world.add("type scale_down pod_count 1 task_id a").await;
    world.settled(last).await;
    assert_eq!(world.fake.seen(), [before, middle, last]);
    let task = world.task("a").await;
    assert_eq!((task.wanted, task.version, task.last_entry), (1, 3, Some(last)));
    // An entry without a task id is its own task.
    let own = world.add("type scale_up").await;
    world.settled(own).await;
    assert_eq!(world.task(&own.to_string()).await.wanted, 1);
    reader.stop().await;
}

#[tokio::test]
async fn poison_is_put_aside_at_once_while_good_events_pass() {
    let world = World::new().await;
    let mut reader = world.start();
    reader.serving().await;
    let mut wanted = Vec::new();
    for (n, (fields, reason)) in [
        ("task_id t", "`type`: is missing"),
        ("type scale_sideways", "`type`: `scale_sideways`"),
        ("type scale_down task_id t", "`pod_count`: is missing"),
        ("type scale_up pod_count many", "`pod_count`: `many`"),
        ("type scale_up pod_count -1", "`pod_count`: `-1`"),
        ("type scale_up pod_count 1000", "`pod_count` is 1000"),
        ("type scale_up pod_count 1 worker_count 2", "`worker_count`: `2` disagrees with `pod_count`"),
        ("type scale_up task_id a job_id b", "`job_id`"),
        ("type scale_up command ls", "`command`: `ls` is not JSON"),
        ("type scale_up args {}", "`args`: {…}"),
        ("type scale_up env {\"OTTO_X\":\"1\"}", "`env.OTTO_X`"),
        ("type scale_up payload {\"taskid\":\"x\"}", "`payload.taskid`"),
        ("type scale_up payload junk", "`payload`: `junk` is not JSON"),
        ("type scale_up timeout_seconds 1h", "`timeout_seconds`: `1h`"),
        ("type scale_up priority 9999999999", "`priority`"),
        ("type scale_down task_id unheard-of pod_count 1", "unknown task `unheard-of`"),
        ("type scale_up task_id good-0 pod_count 1 priority 5", "`priority` contradicts"),
    ]
    .into_iter()
    .enumerate()
    {
        let good = format!("good-{n}");
        world.scale_up(&good).await;
        wanted.push((world.add(fields).await, reason));
    }
    let last = world.scale_up("last").await;
    world.settled(last).await;
    assert_eq!(world.fake.changed().len(), wanted.len() + 1, "{:?}", world.fake.changed());
    let dead = world.dead().await;
    assert_eq!(dead.len(), wanted.len(), "{dead:#?}");
    for (entry, reason) in wanted {
        let found = dead.iter().find(|(dead, _)| *dead == entry).unwrap_or_else(|| panic!("{reason}: no letter"));
        assert!(found.1.contains(reason), "{reason}: {}", found.1);
    }
    reader.stop().await;
}

#[tokio::test]
async fn a_megabyte_of_garbage_is_put_aside() {
    let world = World::new().await;
    let mut reader = world.start();
    reader.serving().await;
    let garbage: Vec<u8> = (0..1_048_576_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 11) as u8).collect();
    let mut add = redis::cmd("XADD");
    add.arg(STREAM).arg("*").arg("type").arg("scale_up").arg(&garbage[..50]).arg(&garbage);
    let entry: String = add.query_async(&mut world.connection.clone()).await.unwrap();
    let mut add = redis::cmd("XADD");
    add.arg(STREAM).arg("*");
    for n in 0..3000 {
        add.arg(format!("field{n}")).arg(n);
    }
    let many: String = add.query_async(&mut world.connection.clone()).await.unwrap();
    let mut add = redis::cmd("XADD");
    add.arg(STREAM).arg("*").arg("type").arg(b"scale_up").arg("task_id").arg(b"\xff\xfe");
    let invalid: String = add.query_async(&mut world.connection.clone()).await.unwrap();
    let good = world.scale_up("good").await;
    world.settled(good).await;
    let dead = world.dead().await;
    let ids: Vec<_> = dead.iter().map(|(entry, _)| entry.to_string()).collect();
    assert_eq!(ids, [entry, many, invalid]);
    assert!(dead[0].1.contains("1048638 bytes") && dead[1].1.contains("3000 fields"), "{dead:?}");
    assert!(dead[2].1.contains("`task_id`") && dead[2].1.contains("UTF-8"), "{dead:?}");
    assert_eq!(world.fake.changed().len(), 1);

    // What was too large is kept in part, and cannot be replayed.
    let letters = world.redis.dead_letters();
    let large = &letters.list(10, None).await.unwrap()[2];
    assert!(large.fields.values().all(|value| value.len() <= 3 * 4096), "{}", large.fields.len());
    assert!(letters.replay(&large.id).await.unwrap_err().to_string().contains("only a part"));
    reader.stop().await;
}

#[tokio::test]
async fn the_same_event_twice_runs_once() {
    let world = World::new().await;
    let mut reader = world.start();
    reader.serving().await;
    for _ in 0..5 {
        world.add("type scale_up task_id twice pod_count 2 command [\"ls\"]").await;
    }
    let last = world.scale_up("other").await;
    world.settled(last).await;
    let task = world.task("twice").await;
    assert_eq!((task.wanted, task.workers.len()), (2, 2));
    assert!(task.workers.iter().all(|worker| worker.attempt == 1));
    assert_eq!(world.dead().await, []);
    reader.stop().await;
}

#[tokio::test]
async fn dead_letters_are_listed_in_pages_and_replayed_with_their_task() {
    let world = World::new().await;
    let letters = world.redis.dead_letters();
    let mut reader = world.start();
    reader.serving().await;
    let named = world.add("type scale_down task_id later pod_count 1 note kept").await;
    let nameless = world.add("type scale_up pod_count x").await;
    let payload = world.add("type scale_down payload {\"taskId\":\"in-payload\",\"workerCount\":1}").await;
    world.settled(payload).await;

    // Newest first; those that the controller refuses die a little later than those that cannot be read.
    let mut all = letters.list(2, None).await.unwrap();
    let rest = letters.list(2, Some(&all[1].id)).await.unwrap();
    assert_eq!((all.len(), rest.len()), (2, 1));
    assert_eq!(letters.list(2, Some(&rest[0].id)).await.unwrap(), []);
    assert_eq!(letters.list(2, Some("nonsense")).await.unwrap(), []);
    all.extend(rest);
    assert!(all.iter().map(|letter| id(&letter.id)).rev().is_sorted());
    let letter = |entry: EntryId| all.iter().find(|letter| letter.entry == entry).unwrap();
    assert_eq!(letter(named).fields["note"], "kept");
    assert!((now() - letter(named).dead_at).abs() < 60_000);

    // Meanwhile the task has come to be, and now there is something to lower.
    let up = world.add("type scale_up task_id later pod_count 3").await;
    world.settled(up).await;
    let replayed = letters.replay(&letter(named).id).await.unwrap().unwrap();
    world.settled(replayed).await;
    assert_eq!(world.task("later").await.wanted, 1);
    assert_eq!(letters.replay(&letter(named).id).await.unwrap(), None);

    // The task of a nameless event stays the first entry's id, and it dies for the same reason again.
    let replayed = letters.replay(&letter(nameless).id).await.unwrap().unwrap();
    world.settled(replayed).await;
    let again = &letters.list(1, None).await.unwrap()[0];
    assert_eq!((again.entry, again.fields["task_id"].as_str()), (replayed, nameless.to_string().as_str()));

    let replayed = letters.replay(&letter(payload).id).await.unwrap().unwrap();
    world.settled(replayed).await;
    let again = &letters.list(1, None).await.unwrap()[0];
    assert_eq!(again.entry, replayed);
    assert!(!again.fields.contains_key("task_id"), "{again:?}");
    assert_eq!(letters.replay("no-id").await.unwrap(), None);
    assert_eq!(letters.replay("1-1").await.unwrap(), None);
    reader.stop().await;
}

#[tokio::test]
async fn a_dead_letter_is_written_once_and_they_are_bounded() {
    let world = World::with(|options| options.max_dead_letters = 100).await;
    let letters = world.redis.dead_letters();
    let entry = |n: u64| entry::Entry {
        id: EntryId { millis: n, sequence: 0 },
        fields: vec![(b"reason".to_vec(), b"its own".to_vec())],
    };
    assert!(letters.bury(&entry(1), "first").await.unwrap());
    assert!(!letters.bury(&entry(1), "second").await.unwrap());
    let found = &letters.list(10, None).await.unwrap()[0];
    assert_eq!((found.reason.as_str(), found.fields["reason"].as_str()), ("first", "its own"));
    let more: Vec<_> = (2..1000).map(entry).collect();
    let buried = futures::future::join_all(more.iter().map(|entry| letters.bury(entry, "more"))).await;
    assert!(buried.into_iter().all(Result::unwrap));
    let length: usize = world.run(&format!("XLEN {STREAM}:dead")).await;
    assert!((100..=300).contains(&length), "{length}");
    let ids: usize = world.run(&format!("ZCARD {{{STREAM}:dead}}:ids")).await;
    assert!((100..=200).contains(&ids), "{ids}");
}

#[tokio::test]
async fn five_thousand_events_and_trimming() {
    let world = World::with(|options| options.keep_events = Some(Duration::ZERO)).await;
    let mut pipeline = redis::pipe();
    for n in 0..5000 {
        let add = pipeline.cmd("XADD").arg(STREAM).arg("*").arg("type").arg("scale_up");
        add.arg("task_id").arg(format!("t{n}")).ignore();
    }
    pipeline.query_async::<()>(&mut world.connection.clone()).await.unwrap();
    // Another group has not read them: nothing is trimmed from under it.
    let _: () = world.run(&format!("XGROUP CREATE {STREAM} others 0")).await;
    let mut reader = world.start();
    reader.serving().await;
    let last = world.scale_up("last").await;
    eventually_progressing("every event is applied", async || {
        let applied = world.fake.changed().len();
        (applied == 5001).then_some(()).ok_or(applied)
    })
    .await;
    world.settled(last).await;
    assert!(world.fake.changed().values().all(|changes| *changes == 1));
    assert_eq!(world.fake.changed().len(), 5001);
    let seen = world.fake.seen();
    assert!(seen.is_sorted(), "out of order");
    tokio::time::sleep(session::UPKEEP * 2).await;
    assert_eq!(world.run::<usize>(&format!("XLEN {STREAM}")).await, 5001);

    let _: () = world.run(&format!("XGROUP DESTROY {STREAM} others")).await;
    eventually("settled entries are trimmed", async || {
        (world.run::<usize>(&format!("XLEN {STREAM}")).await <= 200).then_some(())
    })
    .await;
    reader.stop().await;
}

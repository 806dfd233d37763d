//! What breaks, and what must hold then: no event vanishes, none is applied twice.

use super::*;

#[tokio::test]
async fn pending_entries_of_every_consumer_are_taken_over_in_order() {
    let world = World::new().await;
    let _: () = world.run(&format!("XGROUP CREATE {STREAM} {GROUP} 0 MKSTREAM")).await;
    let mut entries = Vec::new();
    for n in 0..300 {
        entries.push(world.scale_up(&format!("t{n}")).await);
        let consumer = n % 3;
        let _: redis::Value =
            world.run(&format!("XREADGROUP GROUP {GROUP} old-{consumer} COUNT 1 STREAMS {STREAM} >")).await;
    }
    assert_eq!(world.pending().await, 300);
    entries.push(world.scale_up("new").await);
    let mut reader = world.start();
    reader.serving().await;
    world.settled(entries[300]).await;
    assert_eq!(world.fake.seen(), entries);
    reader.stop().await;
}

#[tokio::test]
async fn entries_deleted_while_pending_are_reported_lost_once() {
    let world = World::new().await;
    let _: () = world.run(&format!("XGROUP CREATE {STREAM} {GROUP} 0 MKSTREAM")).await;
    let (first, second, third) = (world.scale_up("1").await, world.scale_up("2").await, world.scale_up("3").await);
    let _: redis::Value = world.run(&format!("XREADGROUP GROUP {GROUP} old STREAMS {STREAM} >")).await;
    let _: () = world.run(&format!("XDEL {STREAM} {second}")).await;
    let mut reader = world.start();
    reader.serving().await;
    world.settled(third).await;
    assert_eq!((world.fake.seen(), world.fake.lost()), (vec![first, third], vec![second]));
    reader.stop().await;
    let mut reader = world.start();
    reader.serving().await;
    assert_eq!(world.fake.lost(), [second]);
    assert_eq!(world.dead().await, [(second, "deleted from the stream before it was applied".to_owned())]);
    let letter = world.redis.dead_letters().list(1, None).await.unwrap().remove(0);
    let error = world.redis.dead_letters().replay(&letter.id).await.unwrap_err().to_string();
    assert!(error.contains("only tells of a loss"), "{error}");
    reader.stop().await;
}

/// A loss is forgotten only when its dead letter is written, so a reader that dies in between leaves it to the next.
#[tokio::test]
async fn a_loss_that_cannot_be_written_is_kept() {
    let world = World::new().await;
    let _: () = world.run(&format!("XGROUP CREATE {STREAM} {GROUP} 0 MKSTREAM")).await;
    let pending = world.scale_up("pending").await;
    let _: redis::Value = world.run(&format!("XREADGROUP GROUP {GROUP} old STREAMS {STREAM} >")).await;
    let unread = world.scale_up("unread").await;
    let _: () = world.run(&format!("XDEL {STREAM} {pending} {unread}")).await;
    let _: () = world.run(&format!("SET {STREAM}:dead x")).await;
    let mut reader = world.start();
    reader.becomes(|health| matches!(health, Health::NotServing(why) if why.contains("WRONGTYPE"))).await;
    reader.kill().await;
    assert_eq!(world.fake.lost(), []);
    let _: () = world.run(&format!("DEL {STREAM}:dead")).await;
    let mut reader = world.start();
    reader.serving().await;
    let mut dead: Vec<_> = world.dead().await.into_iter().map(|(entry, _)| entry).collect();
    dead.sort();
    assert_eq!((dead, world.fake.lost()), (vec![pending, unread], vec![unread, pending]));
    reader.stop().await;
}

/// Redis does not undo the first half of a script whose second half fails.
#[tokio::test]
async fn a_dead_letter_that_cannot_be_written_is_written_later() {
    let world = World::new().await;
    let _: () = world.run(&format!("SET {STREAM}:dead x")).await;
    let bad = world.add("type explode task_id a").await;
    let mut reader = world.start();
    reader.becomes(|health| matches!(health, Health::NotServing(why) if why.contains("WRONGTYPE"))).await;
    let _: () = world.run(&format!("DEL {STREAM}:dead")).await;
    world.settled(bad).await;
    let dead: Vec<_> = world.dead().await.into_iter().map(|(entry, _)| entry).collect();
    assert_eq!(dead, [bad]);
    reader.stop().await;
}

/// The answer of the claim, in which Redis tells of the deleted entries for the only time, is lost.
#[tokio::test]
async fn a_loss_is_reported_even_if_the_claims_answer_was_lost() {
    let world = World::new().await;
    let _: () = world.run(&format!("XGROUP CREATE {STREAM} {GROUP} 0 MKSTREAM")).await;
    let entry = world.scale_up("t").await;
    let _: redis::Value = world.run(&format!("XREADGROUP GROUP {GROUP} old STREAMS {STREAM} >")).await;
    let _: () = world.run(&format!("XDEL {STREAM} {entry}")).await;
    let group = group::Group { link: world.redis.link.clone(), keys: Arc::clone(&world.redis.keys) };
    group.claim(Duration::ZERO, "0-0").await.unwrap();
    let mut reader = world.start();
    reader.serving().await;
    eventually("it is reported", async || (world.fake.lost() == [entry]).then_some(())).await;
    reader.stop().await;
}

#[tokio::test]
async fn entries_deleted_before_they_were_read_are_reported_lost() {
    let world = World::new().await;
    let mut reader = world.start();
    reader.serving().await;
    let seen = world.scale_up("seen").await;
    world.settled(seen).await;
    reader.stop().await;
    world.nobody_reads().await;
    for n in 0..5 {
        world.scale_up(&format!("gone-{n}")).await;
    }
    let kept = world.scale_up("kept").await;
    let _: () = world.run(&format!("XTRIM {STREAM} MAXLEN = 1")).await;
    let mut reader = world.start();
    reader.serving().await;
    world.settled(kept).await;
    assert_eq!((world.fake.seen(), world.fake.lost().len()), (vec![seen, kept], 1));
    let dead = world.dead().await;
    assert!(dead.len() == 1 && dead[0].1.contains(&format!("at least 5 events after {seen}")), "{dead:?}");
    reader.stop().await;
    world.nobody_reads().await;
    let deleted = world.scale_up("deleted").await;
    let _: () = world.run(&format!("XDEL {STREAM} {deleted}")).await;
    let mut reader = world.start();
    reader.serving().await;
    assert_eq!(world.fake.lost().last(), Some(&deleted));
    // Told once.
    reader.stop().await;
    let mut reader = world.start();
    reader.serving().await;
    assert_eq!((world.fake.lost().len(), world.dead().await.len()), (2, 2));
    reader.stop().await;
}

/// A frozen reader's connection takes entries with it that were meant for its successor.
#[tokio::test]
async fn strays_are_claimed_while_reading() {
    let world = World::new().await;
    let mut reader = world.start();
    reader.serving().await;
    let mut connection = world.server.connect().await.unwrap();
    // Until one of the two readers that wait has been overtaken by this one.
    for n in 0_u32.. {
        let frozen = async {
            let mut read = redis::cmd("XREADGROUP");
            read.arg("GROUP").arg(GROUP).arg("frozen").arg("STREAMS").arg(STREAM).arg(">");
            world.scale_up(&format!("t{n}")).await;
            read.query_async::<redis::Value>(&mut connection).await.unwrap()
        };
        if frozen.await != redis::Value::Nil {
            break;
        }
        assert!(n < 100_000, "never the first");
    }
    let last = world.scale_up("last").await;
    world.settled(last).await;
    reader.stop().await;
}

#[tokio::test]
async fn unavailable_answers_are_submitted_again_and_nothing_overtakes() {
    let world = World::new().await;
    let mut entries = Vec::new();
    for n in 1..=20 {
        entries.push(world.add(&format!("type scale_up task_id t pod_count {n}")).await);
    }
    // All 20 the first time, and again all.
    world.fake.fail.store(40, Ordering::SeqCst);
    let mut reader = world.start();
    reader.serving().await;
    world.settled(entries[19]).await;
    let task = world.task("t").await;
    assert_eq!((task.wanted, task.version, task.last_entry), (20, 20, Some(entries[19])));
    reader.stop().await;
}

#[tokio::test]
async fn killed_in_the_middle_again_and_again() {
    let world = World::new().await;
    let mut last = None;
    for n in 0..1000 {
        last = Some(world.add(&format!("type scale_up task_id t{} pod_count {}", n % 100, 1 + n / 100)).await);
    }
    for round in 1..=8 {
        let mut reader = world.start();
        reader.serving().await;
        eventually("it gets on", async || (world.fake.seen().len() >= round * 100).then_some(())).await;
        reader.kill().await;
    }
    let mut reader = world.start();
    reader.serving().await;
    world.settled(last.unwrap()).await;
    assert_eq!(world.dead().await, []);
    let changed = world.fake.changed();
    assert_eq!(changed.len(), 100);
    for task in changed.into_keys() {
        let record = world.task(&task).await;
        assert_eq!((record.wanted, record.version), (10, 10), "{task}");
    }
    reader.stop().await;
}

#[tokio::test]
async fn redis_killed_and_restarted() {
    let mut world = World::new().await;
    let mut reader = world.start();
    reader.serving().await;
    let mut entries = Vec::new();
    for round in 0..3 {
        for n in 0..20 {
            entries.push(world.scale_up(&format!("t{round}-{n}")).await);
        }
        world.server.kill().await.unwrap();
        reader.becomes(|health| matches!(health, Health::NotServing(why) if why.contains("--redis-url"))).await;
        let error = world.redis.store().ping().await.unwrap_err().to_string();
        assert!(error.contains("127.0.0.1:") && error.contains("--redis-url"), "{error}");
        world.server.restart().await.unwrap();
        world.connection = world.server.connect().await.unwrap();
        reader.serving().await;
        world.settled(*entries.last().unwrap()).await;
    }
    world.redis.store().ping().await.unwrap();
    let tasks = world.redis.store().load(0).await.unwrap();
    assert!(tasks.iter().all(|task| (task.version, task.wanted) == (1, 1)), "{tasks:?}");
    assert_eq!((tasks.len(), world.dead().await), (60, vec![]));
    reader.stop().await;
}

/// Redis loses everything (no append-only file, an empty replica took over): reading goes on.
#[tokio::test]
async fn everything_flushed() {
    let world = World::new().await;
    let mut reader = world.start();
    reader.serving().await;
    let before = world.scale_up("before").await;
    world.settled(before).await;
    let _: () = world.run("FLUSHALL").await;
    let after = world.scale_up("after").await;
    eventually("it is applied", async || world.fake.seen().contains(&after).then_some(())).await;
    world.settled(after).await;
    reader.stop().await;
}

#[tokio::test]
async fn connections_cut_by_redis() {
    let world = World::new().await;
    let mut reader = world.start();
    reader.serving().await;
    let mut entries = Vec::new();
    for n in 0..200 {
        entries.push(world.scale_up(&format!("t{n}")).await);
        if n % 20 == 10 {
            let _: usize = world.run("CLIENT KILL TYPE normal SKIPME yes").await;
        }
    }
    world.settled(entries[199]).await;
    let tasks = world.redis.store().load(0).await.unwrap();
    assert!(tasks.iter().all(|task| (task.version, task.wanted) == (1, 1)), "{tasks:?}");
    assert_eq!((tasks.len(), world.dead().await), (200, vec![]));
    reader.stop().await;
}

#[tokio::test]
async fn a_stream_key_of_another_type_is_named() {
    let world = World::new().await;
    let _: () = world.run(&format!("SET {STREAM} x")).await;
    let mut reader = world.start();
    reader.becomes(|health| matches!(health, Health::NotServing(why) if why.contains("WRONGTYPE"))).await;
    let _: () = world.run(&format!("DEL {STREAM}")).await;
    reader.serving().await;
    reader.stop().await;
}

/// What was deleted before the group was there is nobody's loss.
#[tokio::test]
async fn entries_deleted_before_the_first_start_are_no_loss() {
    let world = World::new().await;
    let deleted = world.scale_up("deleted").await;
    let _: () = world.run(&format!("XDEL {STREAM} {deleted}")).await;
    for _ in 0..2 {
        let mut reader = world.start();
        reader.serving().await;
        reader.stop().await;
    }
    assert_eq!(world.fake.lost(), []);
}

/// The primary became a replica: nothing can be written until there is a primary again.
#[tokio::test]
async fn a_failover() {
    let world = World::new().await;
    let mut reader = world.start();
    reader.serving().await;
    let before = world.scale_up("before").await;
    world.settled(before).await;
    let _: () = world.run("REPLICAOF 127.0.0.1 1").await;
    reader.becomes(|health| *health != Health::Serving).await;
    let error = world.redis.store().ping().await.unwrap_err().to_string();
    assert!(error.to_lowercase().contains("read"), "{error}");
    let _: () = world.run("REPLICAOF NO ONE").await;
    let after = world.scale_up("after").await;
    world.settled(after).await;
    assert_eq!(world.fake.seen(), [before, after]);
    reader.stop().await;
}

#[tokio::test]
async fn a_redis_that_is_away_at_the_start() {
    let mut world = World::new().await;
    world.server.kill().await.unwrap();
    let mut reader = world.start();
    reader.becomes(|health| matches!(health, Health::NotServing(why) if why.contains("events are not read"))).await;
    world.server.restart().await.unwrap();
    world.connection = world.server.connect().await.unwrap();
    reader.serving().await;
    let entry = world.scale_up("t").await;
    world.settled(entry).await;
    reader.stop().await;
}

//! Where reading begins: the first time, and after something was lost.

use super::*;

#[tokio::test]
async fn a_first_start_reads_from_the_beginning_unless_entries_are_too_old() {
    let world = World::new().await;
    let young = world.scale_up("young").await;
    let mut reader = world.start();
    reader.serving().await;
    world.settled(young).await;
    reader.stop().await;

    let world = World::new().await;
    let _: String = world.run(&format!("XADD {STREAM} 1000-0 type scale_up task_id ancient")).await;
    world.scale_up("skipped").await;
    let mut reader = world.start();
    reader.serving().await;
    let new = world.scale_up("new").await;
    world.settled(new).await;
    assert_eq!(world.fake.seen(), [new]);
    reader.stop().await;
}

#[tokio::test]
async fn a_first_start_where_it_is_told() {
    for (start, tasks) in [("0", vec!["a", "b", "c"]), ("$", vec!["c"]), ("after", vec!["b", "c"])] {
        let server = World::new().await;
        let first = server.scale_up("a").await;
        server.scale_up("b").await;
        let start = if start == "after" { first.to_string() } else { start.to_owned() };
        let mut options = options(&server.server.url());
        options.start = start.parse().unwrap();
        let mut reader = server.start_on(Redis::new(options).unwrap());
        reader.serving().await;
        let last = server.scale_up("c").await;
        server.settled(last).await;
        assert_eq!(server.fake.changed().into_keys().collect::<Vec<_>>(), tasks, "{start}");
        reader.stop().await;
    }
}

/// Not from `$`, not from 0: from the highest entry that was applied.
#[tokio::test]
async fn a_group_lost_while_nobody_reads_is_created_where_everything_was_applied() {
    let world = World::new().await;
    let mut reader = world.start();
    reader.serving().await;
    for n in 0..50 {
        world.scale_up(&format!("before-{n}")).await;
    }
    let before = world.scale_up("before").await;
    world.settled(before).await;
    reader.stop().await;
    world.nobody_reads().await;
    let _: () = world.run(&format!("XGROUP DESTROY {STREAM} {GROUP}")).await;
    let after = world.scale_up("after").await;
    let mut reader = world.start();
    reader.serving().await;
    world.settled(after).await;
    assert_eq!(world.fake.seen().iter().filter(|entry| **entry == after).count(), 1);
    assert_eq!(world.fake.seen().len(), 52);
    reader.stop().await;
}

#[tokio::test]
async fn a_group_lost_while_reading_is_created_again() {
    let world = World::new().await;
    let mut reader = world.start();
    reader.serving().await;
    let before = world.scale_up("before").await;
    world.settled(before).await;
    for round in 0..3 {
        let _: () = world.run(&format!("XGROUP DESTROY {STREAM} {GROUP}")).await;
        let after = world.scale_up(&format!("after-{round}")).await;
        eventually("it is applied", async || world.fake.seen().contains(&after).then_some(())).await;
        world.settled(after).await;
    }
    assert_eq!(world.fake.seen().len(), 4);
    reader.stop().await;
}

/// Somebody makes the group again at 0: everything comes again, and nothing is done again.
#[tokio::test]
async fn events_that_come_again_are_recognised() {
    let world = World::new().await;
    let mut reader = world.start();
    reader.serving().await;
    world.add("type scale_up task_id a pod_count 3").await;
    world.add("type scale_up task_id a pod_count 5").await;
    world.add("type scale_down task_id a pod_count 2").await;
    world.add("type scale_up pod_count junk").await;
    let last = world.scale_up("b").await;
    world.settled(last).await;
    reader.stop().await;
    let (changed, dead) = (world.fake.changed(), world.dead().await);
    assert_eq!(dead.len(), 1);

    let _: () = world.run(&format!("XGROUP SETID {STREAM} {GROUP} 0")).await;
    let mut reader = world.start();
    reader.serving().await;
    let new = world.scale_up("c").await;
    world.settled(new).await;
    assert_eq!(world.task("a").await.wanted, 2);
    let mut with_new = changed;
    with_new.insert("c".to_owned(), 1);
    assert_eq!((world.fake.changed(), world.dead().await), (with_new, dead));
    reader.stop().await;
}

/// The group is lost while the marker lags behind what was applied.
#[tokio::test]
async fn applied_events_that_come_again_late_are_no_dead_letters() {
    let world = World::new().await;
    let mut reader = world.start();
    reader.serving().await;
    let first = world.add("type scale_up task_id a pod_count 1").await;
    world.add("type scale_up task_id a pod_count 2").await;
    let last = world.add("type scale_up task_id a pod_count 3").await;
    world.settled(last).await;
    reader.stop().await;
    world.nobody_reads().await;
    let _: () = world.run(&format!("XGROUP DESTROY {STREAM} {GROUP}")).await;
    let _: () = world.run(&format!("SET {{{STREAM}}}:applied {}-0", first.millis - 1)).await;
    let mut reader = world.start();
    reader.serving().await;
    world.settled(last).await;
    assert_eq!((world.dead().await, world.task("a").await.version), (vec![], 3));
    reader.stop().await;
}

#[tokio::test]
async fn a_stream_that_is_deleted_goes_on_with_higher_ids() {
    let world = World::new().await;
    let mut reader = world.start();
    reader.serving().await;
    let before = world.scale_up("before").await;
    world.settled(before).await;
    let _: () = world.run(&format!("DEL {STREAM}")).await;
    eventually("the group is there again", async || {
        (world.run::<usize>(&format!("EXISTS {STREAM}")).await == 1).then_some(())
    })
    .await;
    reader.serving().await;
    // A clock that went back cannot give an id that counts as applied.
    let info: redis::Value = world.run(&format!("XINFO STREAM {STREAM}")).await;
    assert!(format!("{info:?}").contains(&before.to_string()), "{info:?}");
    let after = world.scale_up("after").await;
    world.settled(after).await;
    assert_eq!(world.fake.seen(), [before, after]);
    reader.stop().await;
}

#[tokio::test]
async fn a_stream_that_began_again_with_lower_ids_is_read_from_its_beginning() {
    let world = World::new().await;
    let mut reader = world.start();
    reader.serving().await;
    let before = world.scale_up("before").await;
    world.settled(before).await;
    reader.stop().await;
    world.nobody_reads().await;
    let _: () = world.run(&format!("DEL {STREAM}")).await;
    let lower = before.millis - 5000;
    let _: String = world.run(&format!("XADD {STREAM} {lower}-0 type scale_up task_id lower")).await;
    let mut reader = world.start();
    reader.serving().await;
    world.settled(EntryId { millis: lower, sequence: 0 }).await;
    assert_eq!(world.task("lower").await.wanted, 1);
    reader.stop().await;
}

#[tokio::test]
async fn names_that_cannot_be_used() {
    let mut options = options("redis://127.0.0.1:1");
    options.group = String::new();
    assert!(Redis::new(options.clone()).unwrap_err().contains("--consumer-group"));
    options.group = GROUP.to_owned();
    options.stream = "a b".to_owned();
    assert!(Redis::new(options).unwrap_err().contains("--event-stream"));
}

//! One scaler per stream.

use super::owner::Identity;
use super::*;
use crate::store::tests_of_every_store::record;

const OWNER: &str = "{otto:scale:events}:owner";

fn identity(name: &str) -> Identity {
    Identity { id: format!("id-{name}"), name: format!("{name}:/var/lib/otto data") }
}

fn scaler(world: &World, name: &str) -> Redis {
    Redis::new(options(&world.server.url())).unwrap().owned_by(identity(name))
}

async fn give_to(world: &World, name: &str) {
    let Identity { id, name } = identity(name);
    let mut set = redis::cmd("SET");
    set.arg(OWNER).arg(format!("{id} {name}")).arg("PX").arg(600_000);
    set.query_async::<()>(&mut world.connection.clone()).await.unwrap();
}

fn is_owned(result: Result<impl std::fmt::Debug, StoreError>, name: &str) {
    let error = result.unwrap_err();
    let text = format!("another otto-scaler ({}) owns this stream", identity(name).name);
    assert!(matches!(&error, StoreError::Unavailable(why) if *why == text), "{error}");
}

#[tokio::test]
async fn a_second_scaler_stands_by_until_the_stream_is_released() {
    let world = World::new().await;
    let (one, two) = (scaler(&world, "one"), scaler(&world, "two"));
    let mut first = world.start_on(one.clone());
    first.serving().await;
    let mut second = world.start_on(two.clone());
    let text = "another otto-scaler (one:/var/lib/otto data) owns this stream";
    second.becomes(|health| matches!(health, Health::NotServing(why) if why.contains(text))).await;
    for n in 0..20 {
        let entry = world.scale_up(&format!("t{n}")).await;
        world.settled(entry).await;
    }
    assert_eq!(world.fake.seen().len(), 20);
    is_owned(two.store().load(10).await, "one");
    is_owned(two.store().ping().await, "one");
    is_owned(two.store().put(&record("new", 1), None).await, "one");
    is_owned(two.store().get("t0").await, "one");
    one.store().put(&record("new", 1), None).await.unwrap();

    first.stop().await;
    // Not another's to release.
    two.owner().release().await;
    is_owned(two.store().ping().await, "one");
    one.owner().release().await;
    second.serving().await;
    let last = world.scale_up("last").await;
    world.settled(last).await;
    is_owned(one.store().ping().await, "two");
    second.stop().await;
}

#[tokio::test]
async fn the_same_scaler_takes_over_at_once() {
    let world = World::new().await;
    // As a scaler leaves it that is killed.
    give_to(&world, "one").await;
    let mut reader = world.start_on(scaler(&world, "one"));
    reader.serving().await;
    let left: i64 = world.run(&format!("PTTL {OWNER}")).await;
    assert!((1..=15_000).contains(&left), "{left}");
    reader.stop().await;
}

#[tokio::test]
async fn one_that_lost_the_stream_stops_reading() {
    let world = World::new().await;
    let one = scaler(&world, "one");
    let mut reader = world.start_on(one.clone());
    reader.serving().await;
    give_to(&world, "two").await;
    reader.becomes(|health| *health != Health::Serving).await;
    is_owned(one.store().put(&record("t", 1), None).await, "two");
    world.nobody_reads().await;
    world.scale_up("waits").await;
    let read: redis::Value =
        world.run(&format!("XREADGROUP GROUP {GROUP} otto-scaler COUNT 1 STREAMS {STREAM} >")).await;
    assert_ne!(read, redis::Value::Nil, "it still reads");
    // Expired.
    let _: () = world.run(&format!("DEL {OWNER}")).await;
    reader.serving().await;
    eventually("it is applied", async || world.fake.changed().contains_key("waits").then_some(())).await;
    reader.stop().await;
}

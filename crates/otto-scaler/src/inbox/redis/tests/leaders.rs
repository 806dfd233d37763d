//! A leader that was elected elsewhere has the stream by its turn, and fences those before it.

use super::owner::{Identity, Turn};
use super::*;
use crate::leadership::{self, Leadership};
use crate::store::tests_of_every_store::record;

const OWNER: &str = "{otto:scale:events}:owner";
const SECOND: u64 = 1_000_000_000;

/// A leader with this turn, and its right to act, which lasts a minute.
fn leader(world: &World, name: &str, number: u64) -> (Redis, Leadership) {
    let leadership = Leadership::none_yet();
    leadership.extend(leadership::now() + 60 * SECOND);
    let turn = Turn { number, leadership: leadership.clone() };
    let redis = Redis::new(options(&world.server.url())).unwrap();
    (redis.led_by(Identity { id: name.to_owned(), name: name.to_owned() }, turn), leadership)
}

fn refused(result: Result<impl std::fmt::Debug, StoreError>, text: &str) {
    let error = result.unwrap_err();
    assert!(matches!(&error, StoreError::Unavailable(why) if why.contains(text)), "{error}");
}

#[tokio::test]
async fn a_later_turn_takes_the_stream_and_fences_the_earlier() {
    let world = World::new().await;
    let (one, _) = leader(&world, "one", 7);
    let mut first = world.start_on(one.clone());
    first.serving().await;
    one.store().put(&record("t", 1), None).await.unwrap();

    // It was frozen, say, and knows nothing of the other.
    let (two, _) = leader(&world, "two", 8);
    let mut second = world.start_on(two.clone());
    second.serving().await;
    first
        .becomes(|health| matches!(health, Health::NotServing(why) if why.contains("another otto-scaler (two)")))
        .await;
    refused(one.store().put(&record("t", 2), None).await, "another otto-scaler (two)");
    refused(one.store().get("t").await, "another otto-scaler (two)");
    refused(one.store().load(10).await, "another otto-scaler (two)");
    two.store().put(&record("t", 2), None).await.unwrap();
    let entry = world.scale_up("event").await;
    world.settled(entry).await;
    // It cannot release what is not its own.
    one.owner().release().await;
    two.store().ping().await.unwrap();
    assert!(world.run::<String>(&format!("GET {OWNER}")).await.starts_with("two "));
    first.stop().await;
    second.stop().await;
    two.owner().release().await;
    // Free, so that nobody waits in vain where turns began anew.
    let (three, _) = leader(&world, "three", 1);
    three.store().ping().await.unwrap();
}

#[tokio::test]
async fn a_turn_that_is_over_reads_and_claims_nothing() {
    let world = World::new().await;
    let (one, leadership) = leader(&world, "one", 7);
    one.store().put(&record("t", 1), None).await.unwrap();
    leadership.extend(leadership::now());
    refused(one.store().get("t").await, "does not lead");
    refused(one.store().ping().await, "does not lead");
    let mut reader = world.start_on(one.clone());
    reader.becomes(|health| matches!(health, Health::NotServing(why) if why.contains("does not lead"))).await;
    reader.stop().await;
}

#[tokio::test]
async fn a_turn_without_a_number_waits_until_the_stream_is_free() {
    let world = World::new().await;
    let (one, _) = leader(&world, "one", 7);
    one.store().ping().await.unwrap();
    let (two, _) = leader(&world, "two", 0);
    refused(two.store().ping().await, "another otto-scaler (one)");
    one.owner().release().await;
    two.store().ping().await.unwrap();
}

/// Nobody takes the stream by force from a scaler that was not elected: it knows of no election.
#[tokio::test]
async fn a_scaler_without_election_keeps_its_stream() {
    let world = World::new().await;
    let redis = Redis::new(options(&world.server.url())).unwrap();
    let alone = redis.owned_by(Identity { id: "alone".to_owned(), name: "alone".to_owned() });
    let (one, _) = leader(&world, "one", 7);
    one.store().ping().await.unwrap();
    one.owner().release().await;
    alone.store().ping().await.unwrap();
    let (two, _) = leader(&world, "two", 8);
    refused(two.store().ping().await, "another otto-scaler (alone)");
    alone.owner().release().await;
    two.store().ping().await.unwrap();
    refused(alone.store().ping().await, "another otto-scaler (two)");
}

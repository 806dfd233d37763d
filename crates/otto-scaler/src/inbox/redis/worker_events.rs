//! Worker events on a Redis stream, for backends that listen there: `otto:worker:events`, bounded in length.
//!
//! One entry per event, at least once: `event_id` tells repeats. Fields that have nothing to say are left out.

use std::borrow::Cow;
use std::sync::Arc;

use futures::future::BoxFuture;
use otto_proto::v1::{FailureClass, WorkerEvent};
use prost_types::Timestamp;

use super::link::Link;
use crate::worker_events::{NotTaken, Sink};

/// The sink of one stream.
#[derive(Clone, Debug)]
pub(crate) struct RedisWorkerEvents {
    link: Link,
    stream: String,
    max: u64,
}

impl RedisWorkerEvents {
    /// At most about `max` events are kept.
    pub(crate) fn new(link: Link, stream: String, max: u64) -> Self {
        Self { link, stream, max: max.max(1) }
    }

    async fn add(&self, events: &[Arc<WorkerEvent>]) -> anyhow::Result<()> {
        let mut pipeline = redis::pipe();
        for event in events {
            let add = pipeline.cmd("XADD").arg(&self.stream).arg("MAXLEN").arg("~").arg(self.max).arg("*");
            for (name, value) in fields(event) {
                add.arg(name).arg(&*value);
            }
            add.ignore();
        }
        let added = pipeline.query_async::<()>(&mut self.link.clone()).await;
        added.map_err(|e| anyhow::anyhow!("{}: {}", self.stream, self.link.describe(&e)))
    }
}

impl Sink for RedisWorkerEvents {
    fn name(&self) -> &'static str {
        "redis"
    }

    fn publish<'a>(&'a self, events: &'a [Arc<WorkerEvent>]) -> BoxFuture<'a, Result<(), NotTaken>> {
        Box::pin(async { self.add(events).await.map_err(NotTaken::Away) })
    }
}

/// An event as fields; enums by their short names: `started`, `out_of_memory`.
fn fields(event: &WorkerEvent) -> Vec<(&str, Cow<'_, str>)> {
    let mut fields = vec![
        ("event_id", Cow::from(&event.event_id)),
        ("type", short(event.r#type().as_str_name(), "TYPE_").into()),
        ("task_id", Cow::from(&event.task_id)),
    ];
    if !event.worker_id.is_empty() {
        fields.push(("worker_id", Cow::from(&event.worker_id)));
        fields.push(("index", event.index.to_string().into()));
        fields.push(("attempt", event.attempt.to_string().into()));
    }
    if let Some(time) = event.time.as_ref().and_then(rfc3339) {
        fields.push(("time", time.into()));
    }
    if event.failure_class() != FailureClass::Unspecified {
        fields.push(("failure_class", short(event.failure_class().as_str_name(), "FAILURE_CLASS_").into()));
    }
    let numbers = [("exit_code", event.exit_code), ("signal", event.signal)];
    fields.extend(numbers.into_iter().filter_map(|(name, number)| Some((name, number?.to_string().into()))));
    if let Some(time) = event.retry_at.as_ref().and_then(rfc3339) {
        fields.push(("retry_at", time.into()));
    }
    let texts = [("task_state", &event.task_state), ("node_name", &event.node_name), ("message", &event.message)];
    fields.extend(texts.into_iter().filter(|(_, text)| !text.is_empty()).map(|(name, text)| (name, Cow::from(text))));
    let mut context: Vec<_> = event.context.iter().filter(|(_, value)| !value.is_empty()).collect();
    context.sort();
    fields.extend(context.into_iter().map(|(name, value)| (name.as_str(), Cow::from(value))));
    fields
}

fn short(name: &str, prefix: &str) -> String {
    name.strip_prefix(prefix).unwrap_or(name).to_ascii_lowercase()
}

fn rfc3339(time: &Timestamp) -> Option<String> {
    jiff::Timestamp::new(time.seconds, time.nanos).ok().map(|time| time.to_string())
}

#[cfg(test)]
mod tests {
    use otto_proto::v1::worker_event::Type;

    use super::*;

    #[test]
    fn only_what_there_is_to_say() {
        let event = WorkerEvent {
            event_id: "t/0/1/failed".into(),
            task_id: "t".into(),
            worker_id: "otto-t-0-1".into(),
            attempt: 1,
            r#type: Type::Failed.into(),
            time: Some(Timestamp { seconds: 1_700_000_000, nanos: 500_000_000 }),
            failure_class: FailureClass::OutOfMemory.into(),
            exit_code: Some(137),
            context: [("repository".to_owned(), "acme/app".to_owned())].into(),
            ..WorkerEvent::default()
        };
        let line: Vec<_> = fields(&event).into_iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(
            line.join(" "),
            "event_id=t/0/1/failed type=failed task_id=t worker_id=otto-t-0-1 index=0 attempt=1 \
             time=2023-11-14T22:13:20.5Z failure_class=out_of_memory exit_code=137 repository=acme/app"
        );
    }
}

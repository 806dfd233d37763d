//! What operators watch. No label holds a task or a worker.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use otto_log_store::{SYNC_BOUNDS_SECONDS, Stats, Store};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabelSet, EncodeLabelValue, EncodeMetric, LabelValueEncoder, NoLabelSet,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// Why a client was told to send again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Retry {
    Hole,
    Busy,
    DiskFull,
}

/// Why a line is not stored for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Dropped {
    Refused,
    Foreign,
}

impl EncodeLabelValue for Retry {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), fmt::Error> {
        let name = match self {
            Self::Hole => "hole",
            Self::Busy => "busy",
            Self::DiskFull => "disk_full",
        };
        name.encode(encoder)
    }
}

impl EncodeLabelValue for Dropped {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), fmt::Error> {
        let name = match self {
            Self::Refused => "refused",
            Self::Foreign => "foreign",
        };
        name.encode(encoder)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RetryLabels {
    reason: Retry,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DroppedLabels {
    reason: Dropped,
}

/// The program's own counters. Cheap to count in.
#[derive(Debug)]
pub struct Metrics {
    /// From queueing a record to knowing that it is on disk.
    pub(crate) append_seconds: Histogram,
    pub(crate) duplicate_lines: Counter<u64, AtomicU64>,
    retries: Family<RetryLabels, Counter>,
    dropped: Family<DroppedLabels, Counter>,
    /// Streams that are open for writing.
    pub(crate) sessions: Gauge,
    /// Readings that are open.
    pub(crate) readers: Gauge,
}

impl Metrics {
    /// Makes them and registers them, with those of the store.
    pub fn register(registry: &mut Registry, store: Store) -> Arc<Self> {
        let metrics = Self {
            append_seconds: Histogram::new(exponential_buckets(0.000_25, 2.0, 16)),
            duplicate_lines: Counter::default(),
            retries: Family::default(),
            dropped: Family::default(),
            sessions: Gauge::default(),
            readers: Gauge::default(),
        };
        registry.register(
            "otto_log_append_seconds",
            "From queueing a record to knowing that it is on disk",
            metrics.append_seconds.clone(),
        );
        registry.register(
            "otto_log_duplicate_lines",
            "Lines that were sent again and had been stored before",
            metrics.duplicate_lines.clone(),
        );
        // From the start, so that the first one of each is a change.
        for reason in [Retry::Hole, Retry::Busy, Retry::DiskFull] {
            let _ = metrics.retries.get_or_create(&RetryLabels { reason });
        }
        for reason in [Dropped::Refused, Dropped::Foreign] {
            let _ = metrics.dropped.get_or_create(&DroppedLabels { reason });
        }
        registry.register("otto_log_retry", "Times a client was told to send again", metrics.retries.clone());
        registry.register(
            "otto_log_dropped_lines",
            "Lines that can never be stored (foreign: of another stream; refused: too long, recorded as a gap)",
            metrics.dropped.clone(),
        );
        registry.register("otto_log_sessions", "Open streams of workers", metrics.sessions.clone());
        registry.register("otto_log_readers", "Open readings", metrics.readers.clone());
        registry.register_collector(Box::new(StoreCollector(store)));
        Arc::new(metrics)
    }

    pub(crate) fn retry(&self, reason: Retry) {
        self.retries.get_or_create(&RetryLabels { reason }).inc();
    }

    pub(crate) fn dropped(&self, reason: Dropped, lines: u64) {
        self.dropped.get_or_create(&DroppedLabels { reason }).inc_by(lines);
    }
}

struct StoreCollector(Store);

impl fmt::Debug for StoreCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreCollector").finish_non_exhaustive()
    }
}

impl Collector for StoreCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let stats = self.0.stats();
        type Read = fn(&Stats) -> u64;
        let counters: [(&str, &str, Read); 7] = [
            ("otto_log_lines_stored", "Lines on disk since the start", |s| s.lines),
            ("otto_log_bytes_stored", "Bytes written to segments since the start, headers included", |s| {
                s.written_bytes
            }),
            ("otto_log_records_stored", "Records on disk since the start", |s| s.records),
            ("otto_log_commits", "Group commits, one fdatasync each", |s| s.commits),
            ("otto_log_damaged_records", "Places where stored bytes were found damaged", |s| s.damaged),
            ("otto_log_expired_segments", "Segments removed by retention", |s| s.expired_segments),
            ("otto_log_merged_segments", "Segments whose small blocks were merged", |s| s.merged_segments),
        ];
        for (name, help, read) in counters {
            let counter = ConstCounter::new(read(&stats));
            counter.encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)?;
        }
        let bounds = SYNC_BOUNDS_SECONDS.into_iter().chain([f64::MAX]);
        let buckets: Vec<(f64, u64)> = bounds.zip(stats.sync_counts).collect();
        let mut histogram = encoder.encode_descriptor(
            "otto_log_sync_seconds",
            "Time of each fdatasync",
            None,
            MetricType::Histogram,
        )?;
        let sum = Duration::from_nanos(stats.sync_nanos).as_secs_f64();
        histogram.encode_histogram::<NoLabelSet>(sum, stats.sync_counts.iter().sum(), &buckets, None)?;
        let gauges: [(&str, &str, Read); 5] = [
            ("otto_log_store_segment_bytes", "Size of all segment files", |s| s.segment_bytes),
            ("otto_log_store_segments", "Segment files", |s| s.segments),
            ("otto_log_store_index_bytes", "Size of the index file", |s| s.index_bytes),
            ("otto_log_store_queued_records", "Records waiting to be written", |s| s.queued_records),
            ("otto_log_store_queued_bytes", "Bytes waiting to be written", |s| s.queued_bytes),
        ];
        for (name, help, read) in gauges {
            let gauge = ConstGauge::new(i64::try_from(read(&stats)).unwrap_or(i64::MAX));
            gauge.encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)?;
        }
        Ok(())
    }
}

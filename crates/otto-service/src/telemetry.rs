//! Log messages on stderr, and traces by OpenTelemetry where an endpoint is configured.
//!
//! | variable | meaning |
//! |---|---|
//! | `RUST_LOG` | which messages are written (`info` by default); levels by target: `debug`, `otto_scaler=debug,info` ([`Targets`]) |
//! | `OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` | OTLP over gRPC; nothing is exported without one of them |
//! | `OTEL_SDK_DISABLED=true` | nothing is exported |
//! | `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_TRACES_SAMPLER`, `OTEL_BSP_*`, `OTEL_EXPORTER_OTLP_HEADERS`, … | as the OpenTelemetry specification says |
//!
//! Every RPC gets a span on both sides; the W3C trace context goes from client to server by itself.
//! Traces do not depend on `RUST_LOG`: spans of our own crates at level INFO and above are exported.

#[cfg(feature = "otlp")]
mod otlp;

use crate::settings::{Common, LogFormat};
use anyhow::Context as _;
use std::io::IsTerminal as _;
use tracing::Span;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::{Filter, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, Registry};

/// Keeps telemetry running. Dropping it loses what was not exported yet, without waiting.
#[must_use = "spans are lost unless the guard is shut down"]
#[derive(Debug)]
pub struct Guard {
    #[cfg(feature = "otlp")]
    otlp: Option<otlp::Export>,
}

impl Guard {
    /// Exports what is left, for at most 5 seconds.
    pub async fn shutdown(self) {
        #[cfg(feature = "otlp")]
        if let Some(export) = self.otlp {
            export.shutdown().await;
        }
    }
}

/// Starts logging and, where it is configured, tracing for the program of this name. Call it once, within a tokio
/// runtime (the exporter needs one; without an endpoint none is needed).
///
/// # Errors
/// If `RUST_LOG` cannot be understood, or logging was already started. Trouble with the export is only logged.
pub fn init(service: &'static str, common: &Common) -> anyhow::Result<Guard> {
    // Without RUST_LOG a plain level does, which costs less than a filter at every span.
    let filter: Box<dyn Filter<Registry> + Send + Sync> = match std::env::var("RUST_LOG") {
        Ok(text) if !text.is_empty() => Box::new(text.parse::<Targets>().with_context(|| {
            format!("RUST_LOG={text:?} is no filter; examples: info, debug, otto_scaler=debug,info")
        })?),
        _ => Box::new(LevelFilter::INFO),
    };
    let terminal = std::io::stderr().is_terminal();
    let human = match common.log_format {
        LogFormat::Auto => terminal,
        LogFormat::Human => true,
        LogFormat::Json => false,
    };
    let messages = if human {
        let colours = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(colours).with_filter(filter).boxed()
    } else {
        let json = tracing_subscriber::fmt::layer().json().flatten_event(true).with_span_list(false);
        json.with_writer(std::io::stderr).with_filter(filter).boxed()
    };
    let layers: Vec<Box<dyn tracing_subscriber::Layer<Registry> + Send + Sync>> = vec![messages];

    #[cfg(feature = "otlp")]
    {
        let mut layers = layers;
        let started = otlp::start(service);
        let (export, problem) = match started {
            Ok(Some((export, layer))) => {
                layers.push(layer);
                (Some(export), None)
            }
            Ok(None) => (None, None),
            Err(error) => (None, Some(error)),
        };
        tracing_subscriber::registry().with(layers).try_init().context("logging was already started")?;
        if let Some(error) = problem {
            tracing::warn!("traces are not exported: {error:#}");
        }
        Ok(Guard { otlp: export })
    }
    #[cfg(not(feature = "otlp"))]
    {
        let _ = service;
        tracing_subscriber::registry().with(layers).try_init().context("logging was already started")?;
        Ok(Guard {})
    }
}

/// Makes the span a child of a W3C `traceparent` (`00-TRACE-SPAN-FLAGS`), as it comes with an event or from the
/// environment of a worker. Call it before the span is entered. Text that is no traceparent, and every text where
/// traces are not exported, is ignored.
pub fn parent_from(span: &Span, traceparent: &str) {
    #[cfg(feature = "otlp")]
    otlp::parent_from(span, traceparent);
    #[cfg(not(feature = "otlp"))]
    let _ = (span, traceparent);
}

/// The W3C `traceparent` that makes others children of this span. `None` where traces are not exported: then pass on
/// the one that came in, so that a trace is not broken by a program which does not take part.
pub fn traceparent(span: &Span) -> Option<String> {
    #[cfg(feature = "otlp")]
    return otlp::traceparent(span);
    #[cfg(not(feature = "otlp"))]
    {
        let _ = span;
        None
    }
}

/// Whether traces are exported.
pub(crate) fn exporting() -> bool {
    #[cfg(feature = "otlp")]
    return otlp::exporting();
    #[cfg(not(feature = "otlp"))]
    false
}

/// Makes the span a child of the context in a request's headers.
pub(crate) fn extract(span: &Span, headers: &http::HeaderMap) {
    #[cfg(feature = "otlp")]
    otlp::extract(span, headers);
    #[cfg(not(feature = "otlp"))]
    let _ = (span, headers);
}

/// Puts the span's context into a request's headers.
pub(crate) fn inject(span: &Span, headers: &mut http::HeaderMap) {
    #[cfg(feature = "otlp")]
    otlp::inject(span, headers);
    #[cfg(not(feature = "otlp"))]
    let _ = (span, headers);
}

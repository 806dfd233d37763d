//! Export of spans by OTLP over gRPC.

use anyhow::Context as _;
use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator as _};
use opentelemetry::trace::{TraceContextExt as _, TracerProvider as _};
use opentelemetry_otlp::SpanExporter;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tracing::{Level, Span};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::{Layer, Registry};

/// How long the last export may take when the program ends.
const LAST_EXPORT: Duration = Duration::from_secs(5);

static EXPORTING: AtomicBool = AtomicBool::new(false);

/// The running export. Spans wait in a bounded queue for a thread of the SDK's; a full queue drops spans, so an absent
/// collector costs nobody anything.
#[derive(Debug)]
pub(super) struct Export(SdkTracerProvider);

type BoxedLayer = Box<dyn Layer<Registry> + Send + Sync>;

pub(super) fn exporting() -> bool {
    EXPORTING.load(Ordering::Relaxed)
}

/// Starts the export if the environment asks for it.
pub(super) fn start(service: &'static str) -> anyhow::Result<Option<(Export, BoxedLayer)>> {
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
    if set("OTEL_SDK_DISABLED").is_some_and(|value| value.trim().eq_ignore_ascii_case("true")) {
        return Ok(None);
    }
    if set("OTEL_TRACES_EXPORTER").is_some_and(|value| value.trim() == "none") {
        return Ok(None);
    }
    if set("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT").or_else(|| set("OTEL_EXPORTER_OTLP_ENDPOINT")).is_none() {
        return Ok(None);
    }
    let protocol = set("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL").or_else(|| set("OTEL_EXPORTER_OTLP_PROTOCOL"));
    if let Some(protocol) = protocol.filter(|protocol| protocol != "grpc") {
        anyhow::bail!("OTEL_EXPORTER_OTLP_PROTOCOL={protocol} is not supported; use grpc (usually port 4317)");
    }
    tokio::runtime::Handle::try_current().context("no tokio runtime to export from")?;
    let exporter = SpanExporter::builder().with_tonic().build().context("the OTLP exporter")?;

    // OTEL_SERVICE_NAME and service.name of OTEL_RESOURCE_ATTRIBUTES win over our own name.
    let named = set("OTEL_SERVICE_NAME").is_some()
        || set("OTEL_RESOURCE_ATTRIBUTES")
            .is_some_and(|text| text.split(',').any(|pair| pair.trim().starts_with("service.name=")));
    let resource = Resource::builder();
    let resource = if named { resource } else { resource.with_service_name(service) };
    let provider = SdkTracerProvider::builder().with_resource(resource.build()).with_batch_exporter(exporter).build();
    EXPORTING.store(true, Ordering::Relaxed);

    let ours = filter_fn(|metadata| {
        let level = if metadata.is_span() { Level::INFO } else { Level::WARN };
        metadata.target().starts_with("otto") && *metadata.level() <= level
    });
    let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer(service)).with_filter(ours).boxed();
    Ok(Some((Export(provider), layer)))
}

impl Export {
    pub(super) async fn shutdown(self) {
        // The SDK's shutdown blocks until its thread has exported, which needs this runtime to go on.
        let provider = self.0;
        let last = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(LAST_EXPORT));
        match tokio::time::timeout(LAST_EXPORT + Duration::from_secs(1), last).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) => tracing::warn!(%error, "the last spans were not exported"),
            Ok(Err(error)) => tracing::warn!(%error, "the last spans were not exported"),
            Err(_) => tracing::warn!("the last spans were not exported in time"),
        }
    }
}

pub(super) fn parent_from(span: &Span, traceparent: &str) {
    if exporting() && !span.is_disabled() {
        let carrier = HashMap::from([("traceparent".to_owned(), traceparent.trim().to_owned())]);
        set_parent(span, &carrier);
    }
}

pub(super) fn traceparent(span: &Span) -> Option<String> {
    if !exporting() || span.is_disabled() {
        return None;
    }
    let context = span.context();
    let span = context.span();
    let context = span.span_context();
    context
        .is_valid()
        .then(|| format!("00-{}-{}-{:02x}", context.trace_id(), context.span_id(), context.trace_flags().to_u8()))
}

pub(super) fn extract(span: &Span, headers: &HeaderMap) {
    if exporting() && headers.contains_key("traceparent") {
        set_parent(span, &Headers(headers));
    }
}

pub(super) fn inject(span: &Span, headers: &mut HeaderMap) {
    if exporting() && !span.is_disabled() {
        TraceContextPropagator::new().inject_context(&span.context(), &mut HeadersMut(headers));
    }
}

fn set_parent(span: &Span, carrier: &dyn Extractor) {
    let context = TraceContextPropagator::new().extract(carrier);
    if context.span().span_context().is_valid()
        && let Err(error) = span.set_parent(context)
    {
        tracing::debug!(%error, "the span keeps its own parent");
    }
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}

struct HeadersMut<'a>(&'a mut HeaderMap);

impl Injector for HeadersMut<'_> {
    fn set(&mut self, key: &str, value: String) {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(key), HeaderValue::try_from(value)) {
            self.0.insert(name, value);
        }
    }
}

//! Settings of the Kubernetes driver alone.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use otto_service::settings::parse_duration;

use super::template::Template;

/// Flatten it into the scaler's settings.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Driver kubernetes")]
#[group(id = "kubernetes")]
pub(crate) struct Settings {
    /// Namespace of the workers. Default: that of the kubeconfig's context, or of this Pod.
    #[arg(long, env = "OTTO_NAMESPACE", value_name = "NAME")]
    pub(crate) namespace: Option<String>,
    /// Image of the agent (`otto-worker`), which every worker's Pod runs beside the job.
    #[arg(long, env = "OTTO_AGENT_IMAGE", value_name = "IMAGE")]
    pub(crate) agent_image: Option<String>,
    /// YAML file with what every worker's Pod gets besides: `spec` (a PodSpec), `metadata` (labels, annotations), and the
    /// same under `classes: {NAME: …}` for events with that `resource_class`.
    #[arg(long, env = "OTTO_POD_TEMPLATE", value_name = "FILE")]
    pub(crate) pod_template: Option<PathBuf>,
    /// The log server as workers reach it. Default: --log-server.
    #[arg(long, env = "OTTO_WORKER_LOG_SERVER", value_name = "URL")]
    pub(crate) worker_log_server: Option<String>,
    /// Secret, in the workers' namespace, with the token for the log server: `NAME/KEY`.
    #[arg(long, env = "OTTO_WORKER_TOKEN_SECRET", value_name = "NAME/KEY")]
    pub(crate) worker_token_secret: Option<String>,
    /// Instead: workers send the service account's token that the cluster issues for this audience. For log servers of
    /// another make: otto-log-ingest knows the tokens of its files alone, and refuses these.
    #[arg(long, env = "OTTO_WORKER_TOKEN_AUDIENCE", value_name = "AUDIENCE", conflicts_with = "worker_token_secret")]
    pub(crate) worker_token_audience: Option<String>,
    /// Longest life of a Pod whose job has no timeout of its own (activeDeadlineSeconds); 0s: no limit.
    #[arg(long, env = "OTTO_MAX_LIFETIME", value_name = "TIME", default_value = "7d", value_parser = parse_duration)]
    pub(crate) max_lifetime: Duration,
    /// Requests to the API server under way at once, creations apart.
    #[arg(long, env = "OTTO_MAX_API_CALLS", value_name = "N", default_value = "16")]
    pub(crate) max_api_calls: usize,
}

/// What the driver goes by.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) settings: Settings,
    /// As workers reach it.
    pub(crate) log_server: String,
    /// Of events that name none; may be empty.
    pub(crate) worker_image: String,
    /// Further flags of the agent.
    pub(crate) worker_args: Vec<String>,
    /// Longest wait for what a job needs before it can begin; zero: for ever.
    pub(crate) start_patience: Duration,
    /// From SIGTERM to SIGKILL of a job.
    pub(crate) stop_grace: Duration,
    /// Output of an ended worker that the log server does not take is kept so long.
    pub(crate) drain_limit: Duration,
}

/// The resource classes that events may name, by the Pod template.
///
/// # Errors
/// Names the file, and the path in it.
pub(crate) fn resource_classes(settings: &Settings) -> anyhow::Result<BTreeSet<String>> {
    Ok(Template::read(settings.pod_template.as_deref())?.classes().map(str::to_owned).collect())
}

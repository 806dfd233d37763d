//! The two servers the command talks to.

use otto_proto::v1::log_query_service_client::LogQueryServiceClient;
use otto_proto::v1::ottoscaler_service_client::OttoscalerServiceClient;
use otto_proto::v1::task_service_client::TaskServiceClient;
use otto_service::client::{Channel, Endpoint};
use tonic::Status;

use crate::args::Cli;
use crate::exit::Failure;

/// Largest message that is accepted from a server, bytes.
const MAX_MESSAGE: usize = 64 << 20;

impl Cli {
    pub(crate) fn scaler_client(&self) -> Result<OttoscalerServiceClient<Channel>, Failure> {
        Ok(OttoscalerServiceClient::new(channel(self, &self.scaler)?))
    }

    pub(crate) fn tasks_client(&self) -> Result<TaskServiceClient<Channel>, Failure> {
        Ok(TaskServiceClient::new(channel(self, &self.scaler)?).max_decoding_message_size(MAX_MESSAGE))
    }

    pub(crate) fn logs_client(&self) -> Result<LogQueryServiceClient<Channel>, Failure> {
        Ok(LogQueryServiceClient::new(channel(self, &self.log_server)?).max_decoding_message_size(MAX_MESSAGE))
    }

    /// Turns a status into a failure that names the scaler.
    pub(crate) fn scaler_said(&self, status: Status) -> Failure {
        Failure::Server { server: format!("scaler {}", self.scaler), status: Box::new(status) }
    }

    /// Turns a status into a failure that names the log server.
    pub(crate) fn log_server_said(&self, status: Status) -> Failure {
        Failure::Server { server: format!("log server {}", self.log_server), status: Box::new(status) }
    }
}

fn channel(cli: &Cli, url: &str) -> Result<Channel, Failure> {
    Ok(Endpoint::new(url, &cli.auth)?.connect_lazy())
}

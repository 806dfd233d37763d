//! The two servers: gRPC, and the admin's.

use std::sync::{Arc, Mutex};

use otto_proto::v1::ottoscaler_service_server::OttoscalerServiceServer;
use otto_proto::v1::task_service_server::TaskServiceServer;
use otto_service::admin::Admin;
use otto_service::auth::Policy;
use otto_service::drain::Drain;
use otto_service::grpc::Server;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;
use tonic::codec::CompressionEncoding;

use crate::config::Config;
use crate::driver::Driver;
use crate::grpc::desk::{Desk, Role};
use crate::grpc::scaler::Scaler;
use crate::grpc::tasks::Tasks;
use crate::inbox::DeadLetters;
use crate::standby::Follower;
use crate::store::TaskStore;

/// What calls are answered with.
pub(super) struct Counter {
    pub(super) role: watch::Receiver<Role>,
    pub(super) store: Arc<dyn TaskStore>,
    pub(super) follower: Option<Follower>,
    pub(super) driver: Arc<dyn Driver>,
    pub(super) dead_letters: Option<Arc<dyn DeadLetters>>,
    /// Owns the watchers.
    pub(super) watchers: TaskTracker,
    pub(super) drain: Drain,
}

/// The gRPC server.
pub(super) fn server(config: &Config, policy: Policy, admin: &Admin, counter: Counter) -> Server {
    let Counter { role, store, follower, driver, dead_letters, watchers, drain } = counter;
    let auth = config.auth.client();
    let desk = Arc::new(Desk { role, store, follower, auth, leader: Mutex::default() });
    let scaler = Scaler { desk: Arc::clone(&desk), driver: Arc::clone(&driver) };
    let tasks = Tasks { desk, driver, dead_letters, watchers, drain };
    let size = config.grpc.max_message_size();
    let (gzip, zstd) = (CompressionEncoding::Gzip, CompressionEncoding::Zstd);
    Server::new(config.grpc.clone(), policy)
        .descriptors(otto_proto::FILE_DESCRIPTOR_SET)
        .metrics(admin)
        .add_service(
            OttoscalerServiceServer::new(scaler)
                .max_decoding_message_size(size)
                .accept_compressed(gzip)
                .accept_compressed(zstd)
                .send_compressed(gzip)
                .send_compressed(zstd),
        )
        .add_service(
            TaskServiceServer::new(tasks)
                .max_decoding_message_size(size)
                .accept_compressed(gzip)
                .accept_compressed(zstd)
                .send_compressed(gzip)
                .send_compressed(zstd),
        )
}

//! What every Ottoscaler program shares: settings, telemetry, credentials, the gRPC server and client, draining, the
//! admin endpoint.
//!
//! A program's `main` is always the same few steps:
//!
//! 1. [`settings::load`] its arguments (flags over environment over file);
//! 2. [`telemetry::init`];
//! 3. [`drain::signals`];
//! 4. [`grpc::bind`] its addresses and check who may use them ([`auth::ServerAuth::policy`]);
//! 5. run [`grpc::Server`] and [`admin::Admin`] until drained.
//!
//! Invariant: depends on no other crate of ours, and knows nothing of tasks, workers and logs.

pub mod admin;
pub mod auth;
pub mod client;
pub mod drain;
pub mod grpc;
mod listener;
pub mod probe;
pub mod settings;
pub mod status;
pub mod telemetry;
pub mod web;

//! The crate's parts against real sockets, processes and clients.

mod admin;
mod auth;
mod bounds;
mod drain;
mod echo;
mod serving;
mod settings;
#[cfg(feature = "otlp")]
mod telemetry;
mod wait;

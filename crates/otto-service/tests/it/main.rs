//! The crate's parts against real sockets, processes and clients.

// Clippy allows it in test functions by itself, but not in what they share.
#![allow(clippy::unwrap_used)]

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

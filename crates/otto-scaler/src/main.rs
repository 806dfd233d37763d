//! otto-scaler: starts the workers that events ask for, follows them to their end, and tells what happened.
// Removed when the parts are wired together.
#![allow(dead_code)]

mod apply;
mod config;
mod controller;
mod driver;
mod event;
mod grpc;
mod inbox;
mod metrics;
mod plan;
mod store;
mod task;
mod worker_events;

fn main() {}

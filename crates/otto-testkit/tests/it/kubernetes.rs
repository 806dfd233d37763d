//! The whole system with workers as Pods: the real scaler, a real Redis, a real API server. kwok plays the Pods, or the test
//! does.

mod burst;
mod cluster;
mod faults;
mod frozen;
mod kills;
mod life;
mod manifests;
mod redis_gate;
mod refusals;

//! The whole system with real Pods: images, kubelet, network, evictions, memory. `cargo xtask test --kind` makes a cluster,
//! runs these in it one after another, and deletes it; the default tests leave them out.

mod cluster;
mod interrupted;
mod latency;
mod life;
mod refused;

//! The whole system, on real programs and a real Redis.

mod acknowledged;
mod bad_start;
mod control_plane;
mod dead_letters;
mod dev;
mod drainer;
mod end_to_end;
mod fault_proxy;
mod grpcurl;
mod kubernetes;
mod launch;
mod system;
mod trace;

//! The store through its interface, on real files.
#![allow(missing_docs, clippy::unwrap_used)]

mod basics;
mod concurrency;
mod damage;
mod events;
mod faults;
mod kill;
mod merging;
mod opening;
mod retention;
mod support;

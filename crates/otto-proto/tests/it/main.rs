//! What other implementations rely on.
#![allow(clippy::unwrap_used)]

mod compatibility;

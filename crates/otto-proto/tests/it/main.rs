//! What other implementations rely on.

mod compatibility;

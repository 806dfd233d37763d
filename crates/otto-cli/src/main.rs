//! The `otto` command.
fn main() {}

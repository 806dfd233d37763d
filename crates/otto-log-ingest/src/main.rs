//! The log server. Settings → bind → run → drain.

fn main() {}

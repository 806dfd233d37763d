//! The Redis Stream of events.

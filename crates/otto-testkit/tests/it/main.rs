//! The whole system, on real programs and a real Redis.

//! The real program and real clients.

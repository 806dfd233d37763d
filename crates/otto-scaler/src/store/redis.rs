//! Task records in Redis.

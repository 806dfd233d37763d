//! Task records in a file of the data directory.

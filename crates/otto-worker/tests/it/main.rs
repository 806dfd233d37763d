//! The real agent against real gRPC servers.

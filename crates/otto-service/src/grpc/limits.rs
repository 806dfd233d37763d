//! Bounds of a server.

use crate::settings::{ByteSize, parse_duration};
use std::time::Duration;

/// Bounds of a gRPC server. Flatten it: `#[command(flatten)] grpc: grpc::Limits`.
///
/// A service has to be told its message size itself, because in tonic that is a method of the generated server:
/// `XServer::new(x).max_decoding_message_size(limits.max_message_size())`.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "gRPC limits")]
pub struct Limits {
    /// Largest message that is accepted; a larger one ends its call with RESOURCE_EXHAUSTED.
    #[arg(
        long = "grpc-max-message-size",
        env = "OTTO_GRPC_MAX_MESSAGE_SIZE",
        value_name = "SIZE",
        default_value = "8MiB"
    )]
    pub message_size: ByteSize,

    /// Open connections at most; more are refused.
    #[arg(
        long = "grpc-max-connections",
        env = "OTTO_GRPC_MAX_CONNECTIONS",
        value_name = "N",
        default_value_t = 12_000,
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    pub connections: u32,

    /// Calls at the same time on one connection at most; the client holds back more.
    #[arg(
        long = "grpc-max-streams",
        env = "OTTO_GRPC_MAX_STREAMS",
        value_name = "N",
        default_value_t = 1024,
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    pub streams: u32,

    /// Largest set of headers of a call.
    #[arg(
        long = "grpc-max-header-size",
        env = "OTTO_GRPC_MAX_HEADER_SIZE",
        value_name = "SIZE",
        default_value = "16KiB"
    )]
    pub header_size: ByteSize,

    /// Bytes that a call may have in flight before the service has read them.
    #[arg(long = "grpc-stream-window", env = "OTTO_GRPC_STREAM_WINDOW", value_name = "SIZE", default_value = "1MiB", value_parser = window)]
    pub stream_window: ByteSize,

    /// Bytes that all calls of a connection may have in flight before the services have read them.
    #[arg(
        long = "grpc-connection-window",
        env = "OTTO_GRPC_CONNECTION_WINDOW",
        value_name = "SIZE",
        default_value = "2MiB",
        value_parser = window
    )]
    pub connection_window: ByteSize,

    /// A silent connection is asked for a sign of life after so long …
    #[arg(long = "grpc-keepalive-interval", env = "OTTO_GRPC_KEEPALIVE_INTERVAL", value_name = "TIME", default_value = "10s", value_parser = parse_duration)]
    pub keepalive_interval: Duration,

    /// … and closed when none comes within this time.
    #[arg(long = "grpc-keepalive-timeout", env = "OTTO_GRPC_KEEPALIVE_TIMEOUT", value_name = "TIME", default_value = "20s", value_parser = parse_duration)]
    pub keepalive_timeout: Duration,

    /// A new connection that has not said it speaks HTTP/2 after so long is closed.
    #[arg(long = "grpc-handshake-timeout", env = "OTTO_GRPC_HANDSHAKE_TIMEOUT", value_name = "TIME", default_value = "10s", value_parser = parse_duration)]
    pub handshake_timeout: Duration,

    /// How long calls may go on after the program was asked to end.
    #[arg(long, env = "OTTO_DRAIN_TIMEOUT", value_name = "TIME", default_value = "15s", value_parser = parse_duration)]
    pub drain_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            message_size: ByteSize::new(8 << 20),
            connections: 12_000,
            streams: 1024,
            header_size: ByteSize::new(16 << 10),
            stream_window: ByteSize::new(1 << 20),
            connection_window: ByteSize::new(2 << 20),
            keepalive_interval: Duration::from_secs(10),
            keepalive_timeout: Duration::from_secs(20),
            handshake_timeout: Duration::from_secs(10),
            drain_timeout: Duration::from_secs(15),
        }
    }
}

impl Limits {
    /// For `max_decoding_message_size` of generated servers, in bytes.
    pub fn max_message_size(&self) -> usize {
        self.message_size.as_usize()
    }
}

/// HTTP/2 windows are at least 64 KiB - 1 by the initial settings, and less than 2 GiB: RFC 9113, section 6.9.
fn window(text: &str) -> Result<ByteSize, String> {
    let size: ByteSize = text.parse()?;
    if (65_535..=i32::MAX as u64).contains(&size.as_u64()) {
        Ok(size)
    } else {
        Err("a window is from 64KiB to 2147483647 bytes".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_of_flags_and_of_the_type_agree() {
        #[derive(clap::Parser)]
        struct Args {
            #[command(flatten)]
            grpc: Limits,
        }
        let args: Args = crate::settings::load_from(["test"], |_| None).unwrap();
        assert_eq!(format!("{:?}", args.grpc), format!("{:?}", Limits::default()));
    }

    #[test]
    fn windows() {
        assert!(window("64KiB").is_ok() && window("65535").is_ok());
        assert!(window("1KiB").is_err() && window("2GiB").is_err());
    }
}

//! Types and parsers of values, for `value_parser = …`.

use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::str::FromStr;
use std::time::Duration;

/// A duration with its unit: `500ms`, `30s`, `1h30m`, `7d`; `0` is zero.
///
/// # Errors
/// Says what was wrong and what is accepted.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text.trim())
        .map_err(|error| format!("{error}; a duration is a number with its unit, such as 500ms, 30s, 1h30m or 7d"))
}

/// An address to listen on: `127.0.0.1:50051`, `[::1]:50051`, or `localhost:50051`; port 0 lets the system choose.
///
/// # Errors
/// Says what was wrong and what is accepted.
pub fn parse_listen_addr(text: &str) -> Result<SocketAddr, String> {
    if let Ok(addr) = text.parse() {
        return Ok(addr);
    }
    let accepted = "an address is IP:PORT or NAME:PORT, such as 127.0.0.1:50051, [::1]:50051 or localhost:50051";
    // Without a port there is nothing to resolve, and the resolver's own message would not say so.
    if text.rsplit_once(':').is_none_or(|(_, port)| port.parse::<u16>().is_err()) {
        return Err(format!("no port number; {accepted}"));
    }
    let mut found = text.to_socket_addrs().map_err(|error| format!("{error}; {accepted}"))?;
    found.next().ok_or_else(|| format!("the name has no address; {accepted}"))
}

/// A number of bytes: `512`, `64KiB`, `10GiB` (powers of 1024), `64kB`, `10GB` (powers of 1000), also with a fraction
/// (`1.5GiB`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(u64);

const UNITS: [(&str, u64); 10] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("B", 1),
    ("", 1),
];

impl ByteSize {
    /// So many bytes.
    pub const fn new(bytes: u64) -> Self {
        ByteSize(bytes)
    }

    /// The number of bytes.
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// The number of bytes, at most `usize::MAX`.
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let accepted = "a size is a number of bytes with an optional unit, such as 4096, 64KiB, 1.5GiB or 10GB";
        let text = text.trim();
        let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let unit = unit.trim_start();
        let factor = UNITS
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(unit))
            .map(|(_, factor)| *factor)
            .ok_or_else(|| format!("unknown unit {unit:?}; {accepted}"))?;
        let bytes = if let Ok(whole) = number.parse::<u64>() {
            whole.checked_mul(factor)
        } else {
            let value: f64 = number.parse().map_err(|_| format!("no number; {accepted}"))?;
            let bytes = value * factor as f64;
            (bytes < u64::MAX as f64).then_some(bytes as u64)
        };
        bytes.map(ByteSize).ok_or_else(|| format!("larger than {} bytes; {accepted}", u64::MAX))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact = UNITS.iter().find(|(_, factor)| self.0 >= *factor && self.0.is_multiple_of(*factor));
        match exact {
            Some((unit, factor)) if *factor > 1 => write!(f, "{}{unit}", self.0 / factor),
            _ => write!(f, "{}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("10GiB", 10 << 30),
            ("10 gib", 10 << 30),
            ("1.5KiB", 1536),
            ("10GB", 10_000_000_000),
            ("7B", 7),
        ] {
            assert_eq!(text.parse::<ByteSize>(), Ok(ByteSize(bytes)), "{text}");
        }
        for text in ["", "GiB", "10Gi", "-1", "1e3", "99999999999999TiB", "1.2.3", "1.5.GiB"] {
            let error = text.parse::<ByteSize>().unwrap_err();
            assert!(error.contains("such as 4096"), "{text}: {error}");
        }
    }

    #[test]
    fn sizes_are_shown_as_they_are_read() {
        for bytes in [0, 1, 512, 1 << 10, 3 << 20, 10 << 30, 1_000, 5_000_000, 1025] {
            let shown = ByteSize(bytes).to_string();
            assert_eq!(shown.parse(), Ok(ByteSize(bytes)), "{shown}");
        }
        assert_eq!(ByteSize(10 << 30).to_string(), "10GiB");
    }

    #[test]
    fn durations() {
        assert_eq!(parse_duration("7d"), Ok(Duration::from_secs(7 * 86_400)));
        assert_eq!(parse_duration("1h30m"), Ok(Duration::from_secs(5_400)));
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("0"), Ok(Duration::ZERO));
        for text in ["", "30", "-1s", "1y2x"] {
            let error = parse_duration(text).unwrap_err();
            assert!(error.contains("such as 500ms"), "{text}: {error}");
        }
    }

    #[test]
    fn listen_addresses() {
        assert_eq!(parse_listen_addr("127.0.0.1:0"), Ok("127.0.0.1:0".parse().unwrap()));
        assert_eq!(parse_listen_addr("[::1]:80"), Ok("[::1]:80".parse().unwrap()));
        assert!(parse_listen_addr("localhost:80").unwrap().ip().is_loopback());
        for text in ["", "80", "127.0.0.1", "127.0.0.1:99999", "::1"] {
            let error = parse_listen_addr(text).unwrap_err();
            assert!(error.contains("IP:PORT"), "{text}: {error}");
        }
    }
}

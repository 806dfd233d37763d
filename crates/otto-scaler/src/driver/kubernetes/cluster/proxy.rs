//! Whether the proxy of the environment is for the API server. kubectl asks Go's `net/http`, which looks at `NO_PROXY` and
//! never uses such a proxy for this machine itself; the kube crate compares `NO_PROXY` with the proxy.
//! <https://pkg.go.dev/golang.org/x/net/http/httpproxy#Config>

use std::net::IpAddr;

use http::Uri;

/// A proxy that the kubeconfig names is always used.
pub(super) fn is_bypassed(proxy: &Uri, server: &Uri, variable: impl Fn(&str) -> Option<String>) -> bool {
    let first = |names: [&str; 2]| names.into_iter().filter_map(&variable).find(|value| !value.is_empty());
    let named = first(["HTTPS_PROXY", "https_proxy"]).and_then(|value| value.parse::<Uri>().ok());
    if named.as_ref() != Some(proxy) {
        return false;
    }
    let host = server.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    let address = host.parse::<IpAddr>().ok();
    if host.eq_ignore_ascii_case("localhost") || address.is_some_and(|address| address.is_loopback()) {
        return true;
    }
    let none = first(["NO_PROXY", "no_proxy"]).unwrap_or_default();
    none.split(',').any(|entry| fits(entry.trim(), host, address))
}

fn fits(entry: &str, host: &str, address: Option<IpAddr>) -> bool {
    if entry == "*" {
        return true;
    }
    if let (Some(address), Some((network, length))) = (address, entry.split_once('/')) {
        return matches!((network.parse(), length.parse()), (Ok(network), Ok(length)) if is_within(address, network, length));
    }
    // With a port, it is for that port; there is one API server on a host.
    let entry = entry.rsplit_once(':').filter(|(name, _)| !name.contains(':')).map_or(entry, |(name, _)| name);
    if address.is_some() {
        return entry.trim_start_matches('[').trim_end_matches(']').parse().ok() == address;
    }
    let (entry, host) = (entry.trim_start_matches("*").to_ascii_lowercase(), host.to_ascii_lowercase());
    match entry.strip_prefix('.') {
        Some(domain) => !domain.is_empty() && host.ends_with(&entry),
        None => !entry.is_empty() && (host == entry || host.ends_with(&format!(".{entry}"))),
    }
}

fn is_within(address: IpAddr, network: IpAddr, length: u32) -> bool {
    let same = |a: u128, b: u128, bits: u32| length <= bits && (length == 0 || (a ^ b) >> (bits - length) == 0);
    match (address, network) {
        (IpAddr::V4(a), IpAddr::V4(b)) => same(a.to_bits().into(), b.to_bits().into(), 32),
        (IpAddr::V6(a), IpAddr::V6(b)) => same(a.to_bits(), b.to_bits(), 128),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bypassed(server: &str, none: &str) -> bool {
        let proxy = "http://proxy.example:3128".parse().unwrap();
        is_bypassed(&proxy, &server.parse().unwrap(), |name| match name {
            "HTTPS_PROXY" => Some("http://proxy.example:3128".to_owned()),
            "no_proxy" => Some(none.to_owned()),
            _ => None,
        })
    }

    #[test]
    fn this_machine_is_reached_without_a_proxy() {
        for server in ["https://127.0.0.1:6443", "https://localhost:6443", "https://[::1]:6443"] {
            assert!(bypassed(server, ""), "{server}");
        }
        assert!(!bypassed("https://api.example:6443", ""));
    }

    #[test]
    fn no_proxy_is_about_the_server() {
        for none in
            ["*", "api.corp.example", "corp.example", ".corp.example", "*.corp.example", "x, API.corp.example:6443"]
        {
            assert!(bypassed("https://api.corp.example:6443", none), "{none}");
        }
        for none in ["proxy.example", "p.example", "other", ".", "", "10.0.0.0/8", "/"] {
            assert!(!bypassed("https://api.corp.example:6443", none), "{none}");
        }
        for none in ["10.1.2.3", "10.0.0.0/8", "10.1.2.0/23", "0.0.0.0/0", "10.1.2.3/32"] {
            assert!(bypassed("https://10.1.2.3:6443", none), "{none}");
        }
        for none in ["10.1.2.4", "11.0.0.0/8", "10.1.2.3/33", "10.1.2.3/x", "fd00::/8", "3"] {
            assert!(!bypassed("https://10.1.2.3:6443", none), "{none}");
        }
        assert!(bypassed("https://[fd00::1]:6443", "fd00::/8"));
        assert!(bypassed("https://[fd00::1]:6443", "fd00::1"));
        assert!(!bypassed("https://[fd00::1]:6443", "fe00::/8"));
    }

    #[test]
    fn a_proxy_of_the_kubeconfig_is_meant() {
        let proxy = "http://other.example:3128".parse().unwrap();
        let server = "https://127.0.0.1:6443".parse().unwrap();
        assert!(!is_bypassed(&proxy, &server, |_| Some("http://proxy.example:3128".to_owned())));
    }
}

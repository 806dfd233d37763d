use super::*;

#[derive(Debug, clap::Parser)]
struct Given {
    #[command(flatten)]
    settings: Settings,
}

fn parse(args: &[&str]) -> Result<Settings, String> {
    let given = <Given as clap::Parser>::try_parse_from([&["x"], args].concat());
    given.map(|given| given.settings).map_err(|error| error.to_string())
}

#[test]
fn where_others_reach_a_replica() {
    let bound = "10.0.0.7:9090".parse().unwrap();
    assert_eq!(parse(&[]).unwrap().address(bound).as_deref(), Some("10.0.0.7:9090"));
    let given = parse(&["--advertise-addr", "scaler-0.scalers:9090"]).unwrap();
    assert_eq!(given.address(bound).as_deref(), Some("scaler-0.scalers:9090"));
    for bad in ["scaler", "http://a:1", "a:0", "a:port", "a:1/x", ":1", ""] {
        let error = parse(&["--advertise-addr", bad]).unwrap_err();
        assert!(error.contains("--advertise-addr") && error.contains("HOST:PORT"), "{bad}: {error}");
    }
}

#[test]
fn settings_of_time() {
    let timing = parse(&[]).unwrap().timing().unwrap();
    assert_eq!((timing.lease.as_secs(), timing.renew_deadline.as_secs(), timing.retry.as_secs()), (15, 10, 2));
    let error = parse(&["--lease-duration", "10s"]).unwrap().timing().unwrap_err().to_string();
    assert!(error.contains("--lease-renew-deadline") && error.contains("--lease-duration"), "{error}");
}

#[test]
fn no_two_processes_have_one_name() {
    let (one, other) = (identity(), identity());
    assert_ne!(one, other);
    assert!(!one.contains(char::is_whitespace), "{one}");
}

#[test]
fn a_lease_of_another_program_is_understood() {
    let lease: Lease = serde_json::from_value(serde_json::json!({
        "metadata": {"name": "otto-scaler", "resourceVersion": "7"},
        "spec": {"holderIdentity": "pod_1", "leaseDurationSeconds": 15, "renewTime": "2026-01-01T00:00:00.000000Z"},
    }))
    .unwrap();
    let expected = Seen { version: "7".into(), holder: "pod_1".into(), duration: Duration::from_secs(15) };
    assert_eq!(seen(&lease), expected);
    assert_eq!(
        seen(&Lease::default()),
        Seen { version: String::new(), holder: String::new(), duration: Duration::ZERO }
    );
}

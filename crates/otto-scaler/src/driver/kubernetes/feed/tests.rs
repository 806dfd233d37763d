use super::*;

#[test]
fn lines_of_a_watch() {
    let added = br#"{"type":"ADDED","object":{"kind":"Pod","apiVersion":"v1","metadata":{"name":"a","uid":"u","resourceVersion":"12","managedFields":[{"manager":"x","fieldsV1":{"f:status":{}}}]},"spec":{"nodeName":"n","containers":[{"name":"job"}]},"status":{"phase":"Pending","podIPs":[{"ip":"10.0.0.1"}]}}}
"#;
    let line = parse(added).unwrap();
    assert!(line.kind == Kind::Added);
    assert_eq!(line.object.metadata.resource_version.as_deref(), Some("12"));
    assert_eq!(line.object.spec.node_name.as_deref(), Some("n"));

    let bookmark = br#"{"type":"BOOKMARK","object":{"kind":"Pod","apiVersion":"v1","metadata":{"resourceVersion":"10245","creationTimestamp":null,"annotations":{"k8s.io/initial-events-end":"true"}},"spec":{"containers":null},"status":{}}}"#;
    let line = parse(bookmark).unwrap();
    assert!(line.kind == Kind::Bookmark);

    let error = br#"{"type":"ERROR","object":{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"too old resource version: 1 (2)","reason":"Expired","code":410}}"#;
    let failure = parse(error).err().unwrap();
    assert!(failure.is_expired(), "{failure}");

    assert!(matches!(parse(b"{\"type\":\"ADDED\",\"obj"), Err(Failure::Lost(_))));
    assert!(matches!(parse(b""), Err(Failure::Lost(_))));
    assert!(parse(br#"{"type":"NEW","object":{"metadata":{}}}"#).is_err());
}

#[test]
fn lines_are_put_together_from_pieces() {
    let mut splitter = Splitter::default();
    let mut lines = Vec::new();
    for piece in ["one\ntw", "o", "\n\nthree\nrest"] {
        splitter.push(piece.as_bytes());
        while let Some(line) = splitter.next() {
            lines.push(String::from_utf8(line.to_vec()).unwrap());
        }
    }
    assert_eq!(lines, ["one\n", "two\n", "\n", "three\n"]);
}

#[test]
fn queries_are_encoded() {
    assert_eq!(encoded("a.b/c=d,e"), "a.b%2Fc%3Dd%2Ce");
    assert_eq!(encoded("ä+"), "%C3%A4%2B");
}

#[test]
fn servers_without_streaming_lists() {
    let answer = |code: u16, message: &str| {
        let body = serde_json::json!({ "message": message }).to_string();
        Failure::answer(http::StatusCode::from_u16(code).unwrap(), None, body.as_bytes())
    };
    assert!(is_about_streaming(&answer(422, "sendInitialEvents is forbidden for watch unless the feature gate is on")));
    let old_etcd =
        "a watch stream was requested by the client but the required storage feature RequestWatchProgress is disabled";
    assert!(is_about_streaming(&answer(500, old_etcd)));
    assert!(!is_about_streaming(&answer(500, "etcdserver: leader changed")));
    assert!(!is_about_streaming(&answer(403, "pods is forbidden")));
    assert!(!is_about_streaming(&Failure::Lost("cut".into())));
}

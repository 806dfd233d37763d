use super::*;

const NAMESPACE: &str = "otto";
const URL: &str = "https://api.example:6443";

fn answer(code: u16, reason: &str, message: &str) -> Failure {
    let body = serde_json::json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "reason": reason, "message": message, "code": code,
    });
    Failure::answer(StatusCode::from_u16(code).unwrap(), None, body.to_string().as_bytes())
}

fn plain(code: u16, body: &str) -> Failure {
    Failure::answer(StatusCode::from_u16(code).unwrap(), None, body.as_bytes())
}

fn meaning(failure: &Failure) -> Meaning {
    of_creation(failure, NAMESPACE, URL)
}

/// Answers of real servers (1.34), and what they mean.
#[test]
fn answers_to_a_creation() {
    enum Is {
        Exists,
        Refused(Class),
        Later(Class),
        Again,
        Unclear,
    }
    use Is::{Again, Exists, Later, Refused, Unclear};
    let table: &[(u16, &str, &str, Is)] = &[
        (409, "AlreadyExists", r#"pods "otto-a" already exists"#, Exists),
        (
            409,
            "Conflict",
            r#"Operation cannot be fulfilled on resourcequotas "q": the object has been modified; please apply your changes to the latest version and try again"#,
            Again,
        ),
        (
            422,
            "Invalid",
            r#"Pod "otto-a" is invalid: spec.containers[1].image: Invalid value: " x": must not have leading or trailing whitespace"#,
            Refused(Class::Config),
        ),
        (
            400,
            "BadRequest",
            r#"Pod in version "v1" cannot be handled as a Pod: json: cannot unmarshal"#,
            Refused(Class::Config),
        ),
        (413, "RequestEntityTooLarge", "Request entity too large: limit is 3145728", Refused(Class::Config)),
        (500, "", "etcdserver: request is too large", Refused(Class::Config)),
        (
            403,
            "Forbidden",
            r#"pods "otto-a" is forbidden: exceeded quota: q, requested: pods=1, used: pods=5, limited: pods=5"#,
            Later(Class::Quota),
        ),
        (
            403,
            "Forbidden",
            r#"pods "otto-a" is forbidden: failed quota: q: must specify limits.cpu for: job"#,
            Refused(Class::Quota),
        ),
        (
            403,
            "Forbidden",
            r#"pods "otto-a" is forbidden: violates PodSecurity "restricted:latest": allowPrivilegeEscalation != false (container "job" must set securityContext.allowPrivilegeEscalation=false)"#,
            Refused(Class::Admission),
        ),
        (
            403,
            "Forbidden",
            r#"pods "otto-a" is forbidden: maximum memory usage per Container is 1Gi, but limit is 2Gi"#,
            Refused(Class::Admission),
        ),
        (
            403,
            "Forbidden",
            r#"pods is forbidden: User "system:serviceaccount:otto:otto-scaler" cannot create resource "pods" in API group "" in the namespace "otto""#,
            Later(Class::Infrastructure),
        ),
        (
            403,
            "Forbidden",
            r#"pods "otto-a" is forbidden: error looking up service account otto/default: serviceaccount "default" not found"#,
            Later(Class::Config),
        ),
        (
            403,
            "Forbidden",
            r#"pods "otto-a" is forbidden: unable to create new content in namespace otto because it is being terminated"#,
            Later(Class::Infrastructure),
        ),
        (
            403,
            "Forbidden",
            r#"pods "otto-a" is forbidden: no PriorityClass with name high was found"#,
            Refused(Class::Config),
        ),
        (
            403,
            "Forbidden",
            r#"admission webhook "policy.example.com" denied the request: no images from there"#,
            Refused(Class::Admission),
        ),
        (400, "", r#"admission webhook "policy.example.com" denied the request: bad"#, Refused(Class::Admission)),
        (500, "", r#"admission webhook "policy.example.com" denied the request: bad"#, Refused(Class::Admission)),
        (
            422,
            "Invalid",
            r#"pods "otto-a" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: failed expression"#,
            Refused(Class::Admission),
        ),
        (
            500,
            "InternalError",
            r#"Internal error occurred: failed calling webhook "policy.example.com": failed to call webhook: Post "https://p.example.svc:443/": context deadline exceeded"#,
            Later(Class::Admission),
        ),
        (404, "NotFound", r#"namespaces "otto" not found"#, Later(Class::Infrastructure)),
        (401, "Unauthorized", "Unauthorized", Later(Class::Infrastructure)),
        (429, "TooManyRequests", "the server is busy", Again),
        (500, "InternalError", "Internal error occurred: etcdserver: leader changed", Unclear),
        (503, "ServiceUnavailable", "the server is currently unable to handle the request", Unclear),
        (
            504,
            "Timeout",
            "Timeout: request did not complete within requested timeout - context deadline exceeded",
            Unclear,
        ),
    ];
    for (code, reason, message, expected) in table {
        let found = meaning(&answer(*code, reason, message));
        let right = match (expected, &found) {
            (Exists, Meaning::Exists) | (Again, Meaning::Again(_)) | (Unclear, Meaning::Unclear(_)) => true,
            (Refused(class), Meaning::Refused(outcome)) => {
                assert!(outcome.message.contains(message), "{outcome:?}");
                outcome.class == *class
            }
            (Later(class), Meaning::Later { class: found, .. }) => found == class,
            _ => false,
        };
        assert!(right, "{code} {message}: {found:?}");
    }
}

#[test]
fn a_missing_service_account_is_named() {
    let of = |message: &str| {
        let Failure::Answer { status, .. } = answer(403, "Forbidden", message) else { panic!() };
        missing_account(&status).map(str::to_owned)
    };
    let missing = r#"pods "otto-a" is forbidden: error looking up service account otto/builder: serviceaccount "builder" not found"#;
    assert_eq!(of(missing).as_deref(), Some("builder"));
    assert_eq!(of(r#"pods "otto-a" is forbidden: error looking up service account otto/builder: timed out"#), None);
    assert_eq!(of(r#"pods "otto-a" is forbidden: exceeded quota: q"#), None);
}

#[test]
fn answers_that_are_no_status() {
    assert!(matches!(meaning(&plain(429, "Too many requests, please try again later.\n")), Meaning::Again(_)));
    let Meaning::Unclear(message) = meaning(&plain(502, "<html>\n  Bad   Gateway</html>")) else { panic!() };
    assert!(message.contains("<html> Bad Gateway</html> (502)"), "{message}");
    let Meaning::Unclear(message) = meaning(&plain(503, "")) else { panic!() };
    assert!(message.contains("answered 503"), "{message}");
    assert!(matches!(meaning(&plain(302, "")), Meaning::Later { .. }));
    // Cut in the middle of a character: still text.
    let long = "ä".repeat(1_000);
    assert!(matches!(meaning(&plain(500, &long[..])), Meaning::Unclear(_)));
    assert!(matches!(meaning(&Failure::late(Duration::from_secs(3))), Meaning::Unclear(_)));
    assert!(matches!(meaning(&Failure::Unsent("refused".into())), Meaning::Again(_)));
    assert_eq!(meaning(&Failure::NotLeader), Meaning::NotLeader);
}

#[test]
fn a_missing_permission_is_named() {
    let failure = answer(
        403,
        "Forbidden",
        r#"pods is forbidden: User "weak" cannot create resource "pods" in API group "" in the namespace "otto""#,
    );
    let Meaning::Later { message, .. } = meaning(&failure) else { panic!() };
    assert!(message.starts_with("the scaler may not create pods in the namespace otto: grant it the verb create"));
    // A streaming list is a watch, and it is that verb which is missing.
    let failure = answer(
        403,
        "Forbidden",
        r#"configmaps is forbidden: User "weak" cannot watch resource "configmaps" in API group "" in the namespace "otto""#,
    );
    let asked = Asked { verb: "list", resource: "configmaps", namespace: NAMESPACE, url: URL };
    assert!(explain(&failure, asked).contains("may not watch configmaps"));
}

#[test]
fn a_missing_namespace_names_its_flag() {
    let Meaning::Later { message, .. } = meaning(&answer(404, "NotFound", r#"namespaces "otto" not found"#)) else {
        panic!()
    };
    assert!(message.contains("--namespace"), "{message}");
}

#[test]
fn the_servers_pause_is_kept_to() {
    let body = r#"{"message":"exceeded quota: q"}"#;
    let failure = Failure::answer(StatusCode::FORBIDDEN, Some(Duration::from_secs(17)), body.as_bytes());
    assert!(matches!(meaning(&failure), Meaning::Later { wait, .. } if wait == Duration::from_secs(17)));
}

#[test]
fn too_old_to_go_on() {
    assert!(answer(410, "Expired", "too old resource version: 1 (2)").is_expired());
    assert!(answer(400, "Expired", "the provided continue parameter is too old").is_expired());
    assert!(!answer(404, "NotFound", "x").is_expired());
    assert!(!Failure::Lost("x".into()).is_expired());
}

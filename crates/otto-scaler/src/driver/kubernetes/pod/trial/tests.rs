use serde_json::json;

use super::super::tests::maker;
use super::*;

const TEMPLATE: &str = "
spec:
  nodeSelector: {pool: ci}
  containers:
  - name: job
    resources: {limits: {cpu: 1}}
    typo: 1
classes:
  big:
    spec:
      containers:
      - name: proxy
        image: p
      - name: job
        resources: {limits: {cpu: 2}}
";

fn status(code: u16, message: &str, causes: &[(&str, &str)]) -> Status {
    let causes: Vec<_> = causes.iter().map(|(field, message)| json!({"field": field, "message": message})).collect();
    serde_json::from_value(json!({
        "status": "Failure", "code": code, "message": message, "details": {"causes": causes},
    }))
    .unwrap()
}

fn told(class: usize, status: &Status) -> String {
    let maker = maker(TEMPLATE);
    let trials = maker.trials().unwrap();
    maker.refusal(&trials[class], status).map(|error| format!("{error:#}")).unwrap_or_default()
}

#[test]
fn one_for_each_class() {
    let trials = maker(TEMPLATE).trials().unwrap();
    assert_eq!(trials.iter().map(|trial| trial.class.as_deref()).collect::<Vec<_>>(), [None, Some("big")]);
    let pod: Value = serde_json::from_slice(&trials[1].pod).unwrap();
    assert_eq!(pod["spec"]["containers"][1]["resources"]["limits"]["cpu"], 2);
    assert_eq!(pod["spec"]["containers"][2]["name"], "proxy");
}

/// In the form in which an API server answers; what a real one says is in the tests of `pod/tests/server`.
#[test]
fn refusals_name_class_and_field() {
    let strict = status(
        400,
        r#"Pod in version "v1" cannot be handled as a Pod: strict decoding error: unknown field "spec.containers[1].typo""#,
        &[],
    );
    let text = told(0, &strict);
    assert!(text.contains("`spec.containers[job].typo`: unknown field"), "{text}");
    assert!(!text.contains("class `"), "{text}");
    let text = told(1, &strict);
    assert!(text.contains("class `big`"), "{text}");
    // The class has the container, the template's own spec the field.
    assert!(text.contains("`spec.containers[job].typo`: unknown field"), "{text}");

    let invalid = status(
        422,
        r#"Pod "x" is invalid: spec.containers[1].resources.limits[cpu]: Invalid value: "2": bad"#,
        &[("spec.containers[1].resources.limits[cpu]", r#"Invalid value: "2": bad"#)],
    );
    let text = told(1, &invalid);
    let expected = r#"`spec.containers[job].resources.limits[cpu]` (in the file: `classes.big.spec.containers[job].resources.limits.cpu`): Invalid value: "2": bad"#;
    assert!(text.contains(expected), "{text}");

    let kind = status(
        400,
        "Pod in version \"v1\" cannot be handled as a Pod: json: cannot unmarshal string into Go struct field \
         PodSpec.spec.nodeSelector of type map[string]string",
        &[],
    );
    let text = told(0, &kind);
    assert!(text.contains("`spec.nodeSelector`: it is of type string; accepted: map[string]string"), "{text}");

    let ours = status(422, "…", &[("spec.containers[0].image", "Required value")]);
    assert!(
        told(0, &ours).contains("`spec.containers[otto].image` (not from the file): Required value"),
        "{}",
        told(0, &ours)
    );

    let policy = status(403, r#"pods "x" is forbidden: violates PodSecurity "restricted:latest": …"#, &[]);
    let text = told(0, &policy);
    assert!(text.contains("violates PodSecurity") && text.contains("can be given in the template"), "{text}");
}

#[test]
fn what_says_nothing_about_the_template() {
    for (code, message) in [
        (403, r#"pods is forbidden: User "u" cannot create resource "pods" in API group "" in the namespace "n""#),
        (403, r#"pods "x" is forbidden: exceeded quota: q, requested: pods=1, used: pods=1, limited: pods=1"#),
        (409, "exists"),
        (429, "later"),
        (500, "etcd"),
        (404, r#"namespaces "n" not found"#),
    ] {
        assert_eq!(told(0, &status(code, message, &[])), "", "{message}");
    }
}

#[test]
fn paths() {
    let steps: Vec<_> = split("spec.containers[1].resources.limits[nvidia.com/gpu]").collect();
    let expected = [
        ("spec", false),
        ("containers", false),
        ("1", true),
        ("resources", false),
        ("limits", false),
        ("nvidia.com/gpu", true),
    ];
    assert_eq!(steps, expected);
    assert_eq!(split("").count() + split(".").count(), 0);
    assert_eq!(split("a[b").count(), 2);
}

use serde_json::json;

use super::*;

fn part(spec: &Value) -> Part {
    Part { spec: spec.as_object().unwrap().clone(), ..Part::default() }
}

fn ground() -> Part {
    part(&json!({
        "securityContext": {"fsGroup": 65532},
        "containers": [{"name": "otto", "safe": true}, {"name": "job", "safe": true}],
    }))
}

fn spec(template: &Template, class: Option<&str>) -> Value {
    Value::Object(template.over(&ground(), class).spec)
}

const FILE: &str = r#"
metadata:
  labels: {team: shop, tier: "1"}
  annotations: {note: "a"}
spec:
  serviceAccountName: builder
  tolerations: [{key: ci, operator: Exists}]
  containers:
  - name: job
    resources: {requests: {cpu: 1, memory: 1Gi}}
  - name: proxy
    image: proxy:1
  volumes:
  - name: config
    secret: {secretName: s, defaultMode: 0440}
classes:
  big:
    metadata:
      labels: {tier: "2", team: null}
    spec:
      nodeSelector: {pool: big}
      containers:
      - name: job
        resources: {requests: {cpu: 8}}
      - name: proxy
        $patch: delete
  bare:
    spec:
      $patch: replace
      hostNetwork: true
  alone:
    spec:
      containers:
      - $patch: replace
      - name: job
        tty: true
  same:
"#;

#[test]
fn layers() {
    let template = Template::parse(FILE).unwrap();
    assert_eq!(template.classes().collect::<Vec<_>>(), ["alone", "bare", "big", "same"]);
    let base = json!({
        "securityContext": {"fsGroup": 65532},
        "serviceAccountName": "builder",
        "tolerations": [{"key": "ci", "operator": "Exists"}],
        "volumes": [{"name": "config", "secret": {"secretName": "s", "defaultMode": 0o440}}],
        "containers": [
            {"name": "otto", "safe": true},
            {"name": "job", "safe": true, "resources": {"requests": {"cpu": 1, "memory": "1Gi"}}},
            {"name": "proxy", "image": "proxy:1"},
        ],
    });
    assert_eq!(spec(&template, None), base);
    assert_eq!(spec(&template, Some("same")), base);
    let mut big = base.clone();
    big["nodeSelector"] = json!({"pool": "big"});
    big["containers"][1]["resources"]["requests"]["cpu"] = json!(8);
    big["containers"].as_array_mut().unwrap().pop();
    assert_eq!(spec(&template, Some("big")), big);
    let metadata = template.over(&ground(), Some("big"));
    assert_eq!(Value::Object(metadata.labels), json!({"tier": "2"}));
    assert_eq!(Value::Object(metadata.annotations), json!({"note": "a"}));
}

#[test]
fn what_replaces_keeps_what_is_ours() {
    let template = Template::parse(FILE).unwrap();
    let mut bare = Value::Object(ground().spec);
    bare["hostNetwork"] = json!(true);
    assert_eq!(spec(&template, Some("bare")), bare);
    let alone = spec(&template, Some("alone"));
    assert_eq!(
        alone["containers"],
        json!([{"name": "otto", "safe": true}, {"name": "job", "safe": true, "tty": true}])
    );
    assert_eq!(alone["serviceAccountName"], "builder");
}

#[test]
fn anchors_of_yaml_hold() {
    let text = "---\nspec: {nodeSelector: &all {a: x}}\nclasses: {big: {spec: {nodeSelector: {<<: *all, b: z}}}}\n";
    let template = Template::parse(text).unwrap();
    assert_eq!(spec(&template, Some("big"))["nodeSelector"], json!({"a": "x", "b": "z"}));
}

#[test]
fn an_empty_file_is_no_template() {
    for text in ["", "---\n", "# nothing\n", "{}", "metadata:\nspec:\n", "metadata: {labels: }"] {
        let template = Template::parse(text).unwrap();
        assert_eq!(spec(&template, None), Value::Object(ground().spec), "{text:?}");
    }
}

#[test]
fn what_is_wrong_is_named_with_its_path() {
    for (text, expected) in [
        ("[1]", "it is a list; accepted: metadata, spec, classes"),
        ("kind: Pod", "`kind` is not known; accepted: metadata, spec, classes"),
        ("spec: 1", "`spec` is a number"),
        ("spec: {a: 1, a: 2}", "duplicate"),
        ("spec:\n  x: [", "line"),
        ("metadata: {name: x}", "`metadata.name` is not known here; accepted: labels, annotations"),
        ("metadata: {labels: {a: 1}}", "`metadata.labels[a]` is a number; accepted: a text (in quotes)"),
        ("metadata: {labels: {ottoscaler.io/task: x}}", "`metadata.labels[ottoscaler.io/task]` is the scaler's own"),
        (
            "metadata: {labels: {app.kubernetes.io/name: }}",
            "`metadata.labels[app.kubernetes.io/name]` is the scaler's own",
        ),
        (
            "metadata: {annotations: {ottoscaler.io/x: z}}",
            "`metadata.annotations[ottoscaler.io/x]` is the scaler's own",
        ),
        ("classes: [a]", "`classes` is a list"),
        ("classes: {a: 1}", "`classes.a` is a number; accepted: metadata, spec"),
        ("classes: {a b: {}}", r#"the name "a b"; accepted: names without spaces"#),
        ("classes: {a: {containers: []}}", "`classes.a.containers` is not known; accepted: metadata, spec"),
        ("classes: {a: {spec: {$patch: delete}}}", "`classes.a.spec.$patch`"),
        ("spec: {restartPolicy: Never}", "`spec.restartPolicy` is the scaler's own"),
        ("spec: {activeDeadlineSeconds: 5}", "--max-lifetime"),
        ("spec: {terminationGracePeriodSeconds: null}", "--grace"),
        ("spec: {enableServiceLinks: true}", "`spec.enableServiceLinks`"),
        ("spec: {volumes: [{name: otto, emptyDir: {}}]}", "`spec.volumes[otto]` is the scaler's own"),
        ("spec: {volumes: [{name: otto-token, $patch: delete}]}", "`spec.volumes[otto-token]`"),
        ("spec: {initContainers: [{name: job}]}", "`spec.initContainers[job]` is the scaler's own"),
        (
            "spec: {containers: [{name: job, image: x}]}",
            "`spec.containers[job].image` is the scaler's own: it is the event's",
        ),
        ("spec: {containers: [{name: job, args: []}]}", "`spec.containers[job].args`"),
        (
            "spec: {containers: [{name: job, $patch: delete}]}",
            "`spec.containers[job]` is the scaler's own: every worker has it",
        ),
        ("spec: {containers: [{name: otto, image: x}]}", "--agent-image"),
        ("spec: {containers: [{name: otto, lifecycle: {}}]}", "`spec.containers[otto].lifecycle`"),
        (
            "classes: {a: {spec: {containers: [{name: job, env: [{name: OTTO_JOB_INDEX, value: x}]}]}}}",
            "`classes.a.spec.containers[job].env[OTTO_JOB_INDEX]` is the scaler's own",
        ),
        (
            "spec: {containers: [{name: job, env: [{name: OTTO_AGENT_ENV, valueFrom: {}}]}]}",
            "`spec.containers[job].env[OTTO_AGENT_ENV]` has no value",
        ),
        (
            "spec: {containers: [{name: job, volumeMounts: [{name: v, mountPath: /otto/bin}]}]}",
            "`spec.containers[job].volumeMounts[/otto/bin]`",
        ),
        ("spec: {containers: [{name: job, volumeMounts: [{name: v, mountPath: /otto-token/}]}]}", "are there"),
        ("spec: {containers: [{name: job, volumeMounts: [{name: v, mountPath: /}]}]}", "are there"),
        (
            "spec: {containers: [{name: x, resources: {limits: {memory: 1GB}}}]}",
            r#"`spec.containers[x].resources.limits[memory]` is "1GB"; accepted: an amount"#,
        ),
        ("spec: {volumes: [{name: v, emptyDir: {sizeLimit: lots}}]}", "`spec.volumes[v].emptyDir.sizeLimit`"),
        ("spec: {containers: [{image: x}]}", "`spec.containers[0]` lacks name"),
    ] {
        let problem = Template::parse(text).unwrap_err();
        assert!(problem.contains(expected), "{text}: {problem}");
    }
}

#[test]
fn amounts_and_mounts_that_can_be() {
    for amount in ["1", "500m", "1.5Gi", "\"2\"", "0.5", "1e3", "12E", "5.", ".5", "1E-2", "+1"] {
        let text = format!("spec: {{containers: [{{name: job, resources: {{limits: {{cpu: {amount}}}}}}}]}}");
        Template::parse(&text).unwrap();
    }
    Template::parse("spec: {containers: [{name: job, volumeMounts: [{name: v, mountPath: /ottoman}]}]}").unwrap();
}

#[test]
fn where_a_field_comes_from() {
    let template = Template::parse(FILE).unwrap();
    let origin = |class: Option<&str>, path: &str| {
        template.origin(class, &path.split(' ').map(str::to_owned).collect::<Vec<_>>()).unwrap_or_default()
    };
    let big = Some("big");
    assert_eq!(origin(big, "spec nodeSelector pool"), "classes.big.spec.nodeSelector.pool");
    assert_eq!(
        origin(big, "spec containers job resources requests cpu"),
        "classes.big.spec.containers[job].resources.requests.cpu"
    );
    assert_eq!(
        origin(big, "spec containers job resources requests memory"),
        "spec.containers[job].resources.requests.memory"
    );
    assert_eq!(origin(None, "spec containers proxy image"), "spec.containers[proxy].image");
    assert_eq!(origin(None, "spec tolerations 0 key"), "spec.tolerations[0].key");
    assert_eq!(origin(big, "metadata labels tier"), "classes.big.metadata.labels.tier");
    assert_eq!(origin(None, "spec containers otto image"), "");
    assert_eq!(origin(None, "spec nodeSelector pool"), "");
    assert_eq!(origin(None, "metadata name"), "");
}

#[test]
fn files() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pods.yaml");
    let problem = format!("{:#}", Template::read(Some(&path)).unwrap_err());
    assert!(problem.contains("pods.yaml") && problem.contains("--pod-template"), "{problem}");
    std::fs::write(&path, "spec: {restartPolicy: Always}").unwrap();
    let problem = format!("{:#}", Template::read(Some(&path)).unwrap_err());
    assert!(problem.contains("pods.yaml") && problem.contains("`spec.restartPolicy`"), "{problem}");
    std::fs::write(&path, "#".repeat(2 << 20)).unwrap();
    let problem = format!("{:#}", Template::read(Some(&path)).unwrap_err());
    assert!(problem.contains("larger than"), "{problem}");
    std::fs::write(&path, FILE).unwrap();
    assert!(Template::read(Some(&path)).unwrap().shown().contains("pods.yaml"));
    assert_eq!(Template::read(None).unwrap().classes().count(), 0);
}

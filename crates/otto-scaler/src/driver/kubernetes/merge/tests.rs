use proptest::prelude::*;
use serde_json::json;

use super::*;

fn merged(lower: Value, upper: &Value) -> Value {
    let mut lower = lower.as_object().unwrap().clone();
    let upper = upper.as_object().unwrap();
    check(upper, Kind::PodSpec, "spec").unwrap();
    merge(&mut lower, upper, Kind::PodSpec);
    Value::Object(lower)
}

fn refused(upper: &Value) -> String {
    check(upper.as_object().unwrap(), Kind::PodSpec, "spec").unwrap_err()
}

#[test]
fn objects_are_merged_and_null_removes() {
    let lower = json!({"nodeSelector": {"a": "1", "b": "2"}, "hostNetwork": true, "securityContext": {"fsGroup": 1}});
    let upper = json!({"nodeSelector": {"b": "3", "c": "4"}, "hostNetwork": null, "securityContext": {"runAsUser": 5}});
    let expected =
        json!({"nodeSelector": {"a": "1", "b": "3", "c": "4"}, "securityContext": {"fsGroup": 1, "runAsUser": 5}});
    assert_eq!(merged(lower, &upper), expected);
}

#[test]
fn lists_without_keys_replace_each_other() {
    let lower = json!({"tolerations": [{"key": "a"}], "readinessGates": [{"conditionType": "x"}]});
    let upper = json!({"tolerations": [{"key": "b"}], "readinessGates": []});
    assert_eq!(merged(lower, &upper), upper);
}

#[test]
fn lists_with_keys_are_merged_in_order() {
    let lower = json!({
        "containers": [{"name": "job", "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]}, {"name": "x"}],
        "imagePullSecrets": [{"name": "one"}],
        "hostAliases": [{"ip": "10.0.0.1", "hostnames": ["a"]}],
        "topologySpreadConstraints": [{"topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule", "maxSkew": 1}],
    });
    let upper = json!({
        "containers": [{"name": "y"}, {"name": "job", "env": [{"name": "C", "value": "3"}, {"name": "A", "value": "9"}]}],
        "imagePullSecrets": [{"name": "two"}],
        "hostAliases": [{"ip": "10.0.0.1", "hostnames": ["b"]}],
        "topologySpreadConstraints": [
            {"topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway", "maxSkew": 2},
            {"topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule", "maxSkew": 3},
        ],
    });
    let expected = json!({
        "containers": [
            {"name": "job", "env": [{"name": "A", "value": "9"}, {"name": "B", "value": "2"}, {"name": "C", "value": "3"}]},
            {"name": "x"},
            {"name": "y"},
        ],
        "imagePullSecrets": [{"name": "one"}, {"name": "two"}],
        "hostAliases": [{"ip": "10.0.0.1", "hostnames": ["b"]}],
        "topologySpreadConstraints": [
            {"topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule", "maxSkew": 3},
            {"topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway", "maxSkew": 2},
        ],
    });
    assert_eq!(merged(lower, &upper), expected);
}

#[test]
fn ports_and_mounts_have_keys_of_their_own() {
    let job =
        |ports: Value, mounts: Value| json!({"containers": [{"name": "job", "ports": ports, "volumeMounts": mounts}]});
    let lower = job(
        json!([{"containerPort": 53, "name": "tcp"}, {"containerPort": 53, "protocol": "UDP"}]),
        json!([{"mountPath": "/a", "name": "v"}]),
    );
    let upper = job(
        json!([{"containerPort": 53, "protocol": "TCP", "name": "dns"}]),
        json!([{"mountPath": "/a", "name": "w"}, {"mountPath": "/b", "name": "v"}]),
    );
    let expected = job(
        json!([{"containerPort": 53, "protocol": "TCP", "name": "dns"}, {"containerPort": 53, "protocol": "UDP"}]),
        json!([{"mountPath": "/a", "name": "w"}, {"mountPath": "/b", "name": "v"}]),
    );
    assert_eq!(merged(lower, &upper), expected);
}

#[test]
fn what_can_have_one_source_has_the_upper_layers() {
    let lower = json!({
        "volumes": [{"name": "v", "emptyDir": {"sizeLimit": "1Gi"}}, {"name": "w", "emptyDir": {"sizeLimit": "1Gi"}}],
        "containers": [{"name": "job", "env": [{"name": "A", "value": "1"}]}],
    });
    let upper = json!({
        "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}, {"name": "w", "emptyDir": {"medium": "Memory"}}],
        "containers": [{"name": "job", "env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}}]}],
    });
    let expected = json!({
        "volumes": [
            {"name": "v", "persistentVolumeClaim": {"claimName": "c"}},
            {"name": "w", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}},
        ],
        "containers": [{"name": "job", "env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}}]}],
    });
    assert_eq!(merged(lower, &upper), expected);
}

#[test]
fn directives() {
    let lower = json!({
        "volumes": [{"name": "v", "emptyDir": {}}, {"name": "w", "emptyDir": {}}],
        "nodeSelector": {"a": "1"},
        "affinity": {"nodeAffinity": {"x": 1}},
        "imagePullSecrets": [{"name": "one"}, {"name": "two"}],
        "containers": [{"name": "job", "env": [{"name": "A", "value": "1"}], "resources": {"limits": {"cpu": "1"}}}],
    });
    let upper = json!({
        "volumes": [{"$patch": "delete", "name": "v"}, {"$patch": "delete", "name": "never-there"}],
        "nodeSelector": {"$patch": "replace", "b": "2"},
        "affinity": {"$patch": "delete"},
        "imagePullSecrets": [{"$patch": "replace"}, {"name": "three"}],
        "containers": [{
            "name": "job",
            "env": [{"name": "A", "$patch": "delete"}],
            "resources": {"$patch": "replace", "requests": {"cpu": "2"}},
        }],
    });
    let expected = json!({
        "volumes": [{"name": "w", "emptyDir": {}}],
        "nodeSelector": {"b": "2"},
        "affinity": {},
        "imagePullSecrets": [{"name": "three"}],
        "containers": [{"name": "job", "env": [], "resources": {"requests": {"cpu": "2"}}}],
    });
    assert_eq!(merged(lower, &upper), expected);
    // Where nothing is below, nothing is left of them.
    let expected = json!({
        "volumes": [],
        "nodeSelector": {"b": "2"},
        "affinity": {},
        "imagePullSecrets": [{"name": "three"}],
        "containers": [{"name": "job", "env": [], "resources": {"requests": {"cpu": "2"}}}],
    });
    assert_eq!(merged(json!({}), &upper), expected);
    let new = json!({"containers": [{"name": "new", "image": null, "resources": {"limits": null}}]});
    assert_eq!(merged(json!({}), &new), json!({"containers": [{"name": "new", "resources": {}}]}));
}

#[test]
fn what_cannot_be_merged_names_its_path() {
    for (upper, expected) in [
        (json!({"containers": {"name": "job"}}), "`spec.containers` is an object; accepted: a list"),
        (json!({"containers": ["job"]}), "`spec.containers[0]` is a text; accepted: an object with name"),
        (json!({"containers": [{"image": "x"}]}), "`spec.containers[0]` lacks name"),
        (json!({"volumes": [{"name": "v"}, {"name": "v"}]}), "`spec.volumes[v]` is there twice"),
        (json!({"containers": [{"name": "job", "env": [{"value": "x"}]}]}), "`spec.containers[job].env[0]` lacks name"),
        (
            json!({"nodeSelector": {"$patch": "drop"}}),
            r#"`spec.nodeSelector.$patch` is "drop"; accepted: replace, delete"#,
        ),
        (json!({"$retainKeys": ["a"]}), "`spec.$retainKeys` is not known"),
        (json!({"tolerations": [{"$patch": "replace"}]}), "`spec.tolerations[0].$patch` has no meaning"),
        (json!({"volumes": [{"$patch": "replace", "name": "v"}]}), "stands in an element of its own"),
        (json!({"topologySpreadConstraints": [{"topologyKey": "z"}]}), "lacks topologyKey or whenUnsatisfiable"),
    ] {
        let problem = refused(&upper);
        assert!(problem.contains(expected), "{problem}");
    }
}

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![Just(json!(true)), (0..9_i64).prop_map(|n| json!(n)), "[a-c]{1,2}".prop_map(Value::String)];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::Array),
            proptest::collection::btree_map("[a-d]", inner, 0..4).prop_map(|map| json!(map)),
        ]
    })
}

proptest! {
    /// Laid over nothing, over itself, or twice, a template is itself.
    #[test]
    fn merging_again_changes_nothing(
        lower in proptest::collection::btree_map("[a-d]", any_value(), 0..4),
        upper in proptest::collection::btree_map("[a-d]", any_value(), 0..4),
        names in proptest::collection::btree_set("[a-c]", 0..3),
    ) {
        let containers: Vec<Value> = names.iter().map(|name| json!({"name": name, "x": upper.clone()})).collect();
        let mut upper = json!(upper);
        upper["containers"] = Value::Array(containers);
        prop_assert_eq!(&merged(json!({}), &upper), &upper);
        prop_assert_eq!(&merged(upper.clone(), &upper), &upper);
        let once = merged(json!(lower), &upper);
        prop_assert_eq!(&merged(once.clone(), &upper), &once);
    }
}

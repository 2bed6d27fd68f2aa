//! Role, RoleBinding, ClusterRole, ClusterRoleBinding. What they allow is `auth::rbac`'s.

use serde_json::{Value, json};

use super::fields::{complain, is_dns1123_subdomain, label_selector};
use super::{Column, Row, Strategy, column, wide};
use crate::object::{items, map, text};
use crate::status::Errors;

const GROUP: &str = "rbac.authorization.k8s.io";

const ROLE_COLUMNS: &[Column] = &[Column {
    name: "Created At",
    kind: "date",
    priority: 0,
}];
const BINDING_COLUMNS: &[Column] = &[column("Role"), wide("Users"), wide("Groups"), wide("ServiceAccounts")];

/// Names of a kind.
struct Names {
    kind: &'static str,
    plural: &'static str,
    singular: &'static str,
}

const fn row(names: Names, namespaced: bool, columns: &'static [Column], strategy: &'static dyn Strategy) -> Row {
    Row {
        group: GROUP,
        version: "v1",
        kind: names.kind,
        plural: names.plural,
        singular: names.singular,
        short_names: &[],
        categories: &[],
        namespaced,
        storage: names.plural,
        status: false,
        scale: false,
        generation: false,
        selectable: &[],
        columns,
        strategy,
    }
}

pub(super) const ROWS: &[Row] = &[
    row(
        Names {
            kind: "Role",
            plural: "roles",
            singular: "role",
        },
        true,
        ROLE_COLUMNS,
        &Roles { namespaced: true },
    ),
    row(
        Names {
            kind: "RoleBinding",
            plural: "rolebindings",
            singular: "rolebinding",
        },
        true,
        BINDING_COLUMNS,
        &Bindings { namespaced: true },
    ),
    row(
        Names {
            kind: "ClusterRole",
            plural: "clusterroles",
            singular: "clusterrole",
        },
        false,
        ROLE_COLUMNS,
        &Roles { namespaced: false },
    ),
    row(
        Names {
            kind: "ClusterRoleBinding",
            plural: "clusterrolebindings",
            singular: "clusterrolebinding",
        },
        false,
        BINDING_COLUMNS,
        &Bindings { namespaced: false },
    ),
];

#[derive(Debug)]
struct Roles {
    namespaced: bool,
}

impl Strategy for Roles {
    fn validate(&self, object: &Value, errors: &mut Errors) {
        for (index, rule) in items(object, "/rules").iter().enumerate() {
            self.rule_makes_sense(&format!("rules[{index}]"), rule, errors);
        }
        let Some(aggregation) = object.get("aggregationRule").filter(|a| a.is_object()) else {
            return;
        };
        let field = "aggregationRule.clusterRoleSelectors";
        let selectors = items(aggregation, "/clusterRoleSelectors");
        if selectors.is_empty() {
            let words = "at least one clusterRoleSelector required if aggregationRule is non-nil";
            errors.required(field, words);
        }
        for (index, selector) in selectors.iter().enumerate() {
            label_selector(errors, &format!("{field}[{index}]"), Some(selector));
        }
    }

    fn any_name(&self) -> bool {
        true
    }
}

impl Roles {
    fn rule_makes_sense(&self, field: &str, rule: &Value, errors: &mut Errors) {
        let is_empty = |name: &str| rule.get(name).and_then(Value::as_array).is_none_or(Vec::is_empty);
        if is_empty("verbs") {
            let words = "verbs must contain at least one value";
            errors.required(format!("{field}.verbs"), words);
        }
        if !is_empty("nonResourceURLs") {
            let (field, urls) = (format!("{field}.nonResourceURLs"), &rule["nonResourceURLs"]);
            if self.namespaced {
                let words = "namespaced rules cannot apply to non-resource URLs";
                errors.invalid(field.as_str(), urls, words);
            }
            if !(is_empty("apiGroups") && is_empty("resources") && is_empty("resourceNames")) {
                let words = "rules cannot apply to both regular resources and non-resource URLs";
                errors.invalid(field, urls, words);
            }
            return;
        }
        if is_empty("apiGroups") {
            let words = "resource rules must supply at least one api group";
            errors.required(format!("{field}.apiGroups"), words);
        }
        if is_empty("resources") {
            let words = "resource rules must supply at least one resource";
            errors.required(format!("{field}.resources"), words);
        }
    }
}

#[derive(Debug)]
struct Bindings {
    namespaced: bool,
}

impl Strategy for Bindings {
    fn default(&self, object: &mut Value) {
        if text(object, "/roleRef/apiGroup").is_empty() {
            map(object, "roleRef").insert("apiGroup".into(), json!(GROUP));
        }
        let subjects = object.get_mut("subjects").and_then(Value::as_array_mut);
        for subject in subjects.into_iter().flatten() {
            let person = matches!(text(subject, "/kind"), "User" | "Group");
            let unset = text(subject, "/apiGroup").is_empty();
            if let Some(fields) = subject.as_object_mut().filter(|_| person && unset) {
                fields.insert("apiGroup".into(), json!(GROUP));
            }
        }
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let (group, kind) = (text(object, "/roleRef/apiGroup"), text(object, "/roleRef/kind"));
        if group != GROUP {
            errors.not_supported("roleRef.apiGroup", &json!(group), &[GROUP]);
        }
        let kinds: &[&str] = if self.namespaced {
            &["Role", "ClusterRole"]
        } else {
            &["ClusterRole"]
        };
        if !kinds.contains(&kind) {
            errors.not_supported("roleRef.kind", &json!(kind), kinds);
        }
        match text(object, "/roleRef/name") {
            "" => errors.required("roleRef.name", ""),
            name => complain(errors, "roleRef.name", &json!(name), is_path_segment(name)),
        }
        for (index, subject) in items(object, "/subjects").iter().enumerate() {
            self.subject_makes_sense(&format!("subjects[{index}]"), subject, errors);
        }
    }

    fn validate_update(&self, object: &Value, current: &Value, errors: &mut Errors) {
        let reference = |o: &Value| {
            let part = |name: &str| json!(text(o, &format!("/roleRef/{name}")));
            json!({"APIGroup": part("apiGroup"), "Kind": part("kind"), "Name": part("name")})
        };
        let wanted = reference(object);
        if wanted != reference(current) {
            errors.invalid("roleRef", &wanted, "cannot change roleRef");
        }
    }

    fn cells(&self, object: &Value) -> Vec<Value> {
        let role = format!("{}/{}", text(object, "/roleRef/kind"), text(object, "/roleRef/name"));
        let names = |kind: &str| {
            let subjects = items(object, "/subjects").iter();
            let mine = subjects.filter(|s| text(s, "/kind") == kind);
            let names: Vec<String> = mine.map(|s| subject_name(s, kind)).collect();
            json!(names.join(", "))
        };
        vec![json!(role), names("User"), names("Group"), names("ServiceAccount")]
    }

    fn any_name(&self) -> bool {
        true
    }
}

fn subject_name(subject: &Value, kind: &str) -> String {
    let name = text(subject, "/name");
    if kind == "ServiceAccount" {
        format!("{}/{name}", text(subject, "/namespace"))
    } else {
        name.to_owned()
    }
}

/// What a name in a path may not be.
fn is_path_segment(name: &str) -> Vec<String> {
    if name == "." || name == ".." {
        return vec![format!("may not be '{name}'")];
    }
    let forbidden = ["/", "%"].into_iter().filter(|c| name.contains(c));
    forbidden.map(|c| format!("may not contain '{c}'")).collect()
}

impl Bindings {
    fn subject_makes_sense(&self, field: &str, subject: &Value, errors: &mut Errors) {
        let (name, group) = (text(subject, "/name"), text(subject, "/apiGroup"));
        if name.is_empty() {
            errors.required(format!("{field}.name"), "");
        }
        let group_field = format!("{field}.apiGroup");
        match text(subject, "/kind") {
            "ServiceAccount" => {
                if !name.is_empty() {
                    let wrong = is_dns1123_subdomain(name);
                    complain(errors, &format!("{field}.name"), &json!(name), wrong);
                }
                if !group.is_empty() {
                    errors.not_supported(group_field, &json!(group), &[""]);
                }
                if !self.namespaced && text(subject, "/namespace").is_empty() {
                    errors.required(format!("{field}.namespace"), "");
                }
            }
            "User" | "Group" => {
                if group != GROUP {
                    errors.not_supported(group_field, &json!(group), &[GROUP]);
                }
            }
            kind => {
                let kinds = ["ServiceAccount", "User", "Group"];
                errors.not_supported(format!("{field}.kind"), &json!(kind), &kinds);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROLE: Roles = Roles { namespaced: true };
    const CLUSTER_ROLE: Roles = Roles { namespaced: false };
    const BINDING: Bindings = Bindings { namespaced: true };
    const CLUSTER_BINDING: Bindings = Bindings { namespaced: false };

    fn said(errors: &Errors) -> Vec<String> {
        let causes = errors.causes().iter();
        causes.map(|c| format!("{}: {}", c.field, c.message)).collect()
    }

    fn faults(strategy: &dyn Strategy, object: &Value) -> Vec<String> {
        let mut errors = Errors::default();
        strategy.validate(object, &mut errors);
        said(&errors)
    }

    #[test]
    fn a_rule_is_about_resources_or_about_paths() {
        let right = json!({"rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]});
        assert!(faults(&ROLE, &right).is_empty());
        let paths = json!({"rules": [{"verbs": ["get"], "nonResourceURLs": ["/healthz"]}]});
        assert!(faults(&CLUSTER_ROLE, &paths).is_empty());
        assert_eq!(
            faults(&ROLE, &paths),
            [
                "rules[0].nonResourceURLs: Invalid value: [\"/healthz\"]: namespaced rules cannot apply to non-resource URLs"
            ]
        );
        assert_eq!(
            faults(&ROLE, &json!({"rules": [{}]})),
            [
                "rules[0].verbs: Required value: verbs must contain at least one value",
                "rules[0].apiGroups: Required value: resource rules must supply at least one api group",
                "rules[0].resources: Required value: resource rules must supply at least one resource"
            ]
        );
        assert_eq!(faults(&CLUSTER_ROLE, &json!({"aggregationRule": {}})).len(), 1);
        assert!(faults(&CLUSTER_ROLE, &json!({"rules": null, "aggregationRule": null})).is_empty());
    }

    fn binding() -> Value {
        json!({
            "roleRef": {"kind": "Role", "name": "r"},
            "subjects": [
                {"kind": "User", "name": "u"},
                {"kind": "Group", "name": "g"},
                {"kind": "ServiceAccount", "name": "s", "namespace": "n"},
            ],
        })
    }

    #[test]
    fn subjects_get_their_group() {
        let mut object = binding();
        Strategy::default(&BINDING, &mut object);
        assert_eq!(object["roleRef"]["apiGroup"], GROUP);
        assert_eq!(object["subjects"][0]["apiGroup"], GROUP);
        assert_eq!(object["subjects"][2].get("apiGroup"), None);
        assert!(faults(&BINDING, &object).is_empty());
        assert_eq!(
            faults(&CLUSTER_BINDING, &object),
            ["roleRef.kind: Unsupported value: \"Role\": supported values: \"ClusterRole\""]
        );
        assert_eq!(
            BINDING.cells(&object),
            [json!("Role/r"), json!("u"), json!("g"), json!("n/s")]
        );
    }

    #[test]
    fn a_binding_stays_with_its_role() {
        let mut other = binding();
        other["roleRef"]["name"] = json!("x");
        let mut errors = Errors::default();
        BINDING.validate_update(&other, &binding(), &mut errors);
        assert_eq!(
            said(&errors),
            ["roleRef: Invalid value: {\"APIGroup\":\"\",\"Kind\":\"Role\",\"Name\":\"x\"}: cannot change roleRef"]
        );
    }

    #[test]
    fn what_is_no_subject_is_refused() {
        let object = json!({
            "roleRef": {"apiGroup": GROUP, "kind": "ClusterRole", "name": "a/b"},
            "subjects": [{"kind": "Robot", "name": "r"}, {"kind": "ServiceAccount", "name": "s"}, {"kind": "User"}],
        });
        assert_eq!(
            faults(&CLUSTER_BINDING, &object),
            [
                "roleRef.name: Invalid value: \"a/b\": may not contain '/'",
                "subjects[0].kind: Unsupported value: \"Robot\": supported values: \"ServiceAccount\", \"User\", \"Group\"",
                "subjects[1].namespace: Required value",
                "subjects[2].name: Required value",
                "subjects[2].apiGroup: Unsupported value: \"\": supported values: \"rbac.authorization.k8s.io\"",
            ]
        );
    }
}

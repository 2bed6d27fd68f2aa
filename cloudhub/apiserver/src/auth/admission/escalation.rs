//! Nobody gives away, by a role or a binding, more than they have, unless they may `escalate` or `bind`.

use serde_json::Value;

use super::super::rbac::{self, GROUP, Rule};
use super::super::{Attributes, MASTERS};
use super::{Auth, Operation, Request};
use crate::object::{items, text};
use crate::status::Status;

pub(super) fn validate(auth: &Auth, request: &Request<'_>) -> Result<(), Status> {
    let is_role = request.is(GROUP, "roles") || request.is(GROUP, "clusterroles");
    let is_binding = request.is(GROUP, "rolebindings") || request.is(GROUP, "clusterrolebindings");
    if !is_role && !is_binding || request.user().is_in(MASTERS) {
        return Ok(());
    }
    if request.operation == Operation::Update && rbac::is_only_gc(request.object(), request.current()) {
        return Ok(());
    }
    if is_role {
        role(auth, request)
    } else {
        binding(auth, request)
    }
}

fn role(auth: &Auth, request: &Request<'_>) -> Result<(), Status> {
    let attributes = Attributes {
        verb: "escalate".into(),
        group: GROUP.into(),
        version: "*".into(),
        resource: request.row.plural.into(),
        namespace: request.namespace.into(),
        name: request.name.into(),
        ..Attributes::default()
    };
    if auth.decide(request.user(), &attributes).allowed {
        return Ok(());
    }
    let rules: Vec<Rule> = items(request.object(), "/rules").iter().map(Rule::from_json).collect();
    owned(auth, request, &rules)?;
    // An aggregated role may gather anything, also later.
    let aggregates = |role: &Value| !items(role, "/aggregationRule/clusterRoleSelectors").is_empty();
    if aggregates(request.object()) || aggregates(request.current()) {
        let why = "must have cluster-admin privileges to use the aggregationRule";
        return owned(auth, request, &everything()).map_err(|_| request.forbidden(why));
    }
    Ok(())
}

fn binding(auth: &Auth, request: &Request<'_>) -> Result<(), Status> {
    let object = request.object();
    let (kind, name) = (text(object, "/roleRef/kind"), text(object, "/roleRef/name"));
    let plural = match kind {
        "ClusterRole" => "clusterroles",
        "Role" => "roles",
        // Validation has said so.
        _ => return Ok(()),
    };
    let attributes = Attributes {
        verb: "bind".into(),
        group: GROUP.into(),
        version: "*".into(),
        resource: plural.into(),
        namespace: request.namespace.into(),
        name: name.into(),
        ..Attributes::default()
    };
    if auth.decide(request.user(), &attributes).allowed {
        return Ok(());
    }
    let inner = &auth.inner;
    // The real server's 404 names the role as if it were a binding.
    let rules = inner.rbac.rules_of(&inner.store, kind, name, request.namespace);
    owned(
        auth,
        request,
        &rules.ok_or_else(|| Status::not_found(GROUP, request.row.plural, name))?,
    )
}

/// Whether the user has all of `rules` itself, in that namespace.
fn owned(auth: &Auth, request: &Request<'_>, rules: &[Rule]) -> Result<(), Status> {
    let (inner, user) = (&auth.inner, request.user());
    let own = inner.rbac.rules_for(&inner.store, user, request.namespace);
    let missing = rbac::missing(&own.rules, rules);
    if missing.is_empty() {
        return Ok(());
    }
    let mut why = format!(
        "user {:?} (groups={}) is attempting to grant RBAC permissions not currently held:\n{}",
        user.name,
        rbac::go_list(&user.groups),
        missing.join("\n")
    );
    let error = own.error();
    if !error.is_empty() {
        why = format!("{why}; resolution errors: [{error}]");
    }
    Err(request.forbidden(why))
}

fn everything() -> [Rule; 2] {
    let star = || vec!["*".to_owned()];
    let resources = Rule {
        verbs: star(),
        groups: star(),
        resources: star(),
        ..Rule::default()
    };
    let paths = Rule {
        verbs: star(),
        urls: star(),
        ..Rule::default()
    };
    [resources, paths]
}

//! Acting for someone else: constrained impersonation (KEP 5284) first, then legacy `impersonate`.
//!
//! A constrained mode asks two things of the caller: `impersonate-on:MODE:VERB` on what the request touches, and
//! `impersonate:MODE` on whom it acts for. The first is known only with the request, so [`effective`] answers without it and
//! [`check`] answers whole, for each request. The first refusal is what the caller reads.

use super::{Attributes, Auth, NODES, User, account_groups, account_of, forbidden, is_subdomain};
use crate::status::Status;

/// Whom the headers name, as they say it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Name, uid, groups and extra of the headers and no others.
    pub(crate) user: User,
}

/// Someone acts for someone else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Impersonation {
    /// Who acts.
    pub(crate) by: User,
    /// For whom.
    pub(crate) wanted: Wanted,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    AssociatedNode,
    ArbitraryNode,
    ServiceAccount,
    UserInfo,
    Legacy,
}

/// In the order in which they are tried.
const MODES: &[Mode] = &[
    Mode::AssociatedNode,
    Mode::ArbitraryNode,
    Mode::ServiceAccount,
    Mode::UserInfo,
    Mode::Legacy,
];

impl Mode {
    fn name(self) -> &'static str {
        match self {
            Self::AssociatedNode => "associated-node",
            Self::ArbitraryNode => "arbitrary-node",
            Self::ServiceAccount => "serviceaccount",
            Self::UserInfo => "user-info",
            Self::Legacy => "legacy",
        }
    }

    fn is_constrained(self) -> bool {
        self != Self::Legacy
    }

    /// Whether this mode can act for such a user at all.
    fn applies(self, by: &User, wanted: &User) -> bool {
        let only_name = wanted.uid.is_empty() && wanted.groups.is_empty() && wanted.extra.is_empty();
        let node = node_name(&wanted.name);
        let account = account_of(&wanted.name);
        match self {
            Self::AssociatedNode => only_name && node.is_some() && node == node_of_account(by),
            Self::ArbitraryNode => only_name && node.is_some(),
            Self::ServiceAccount => only_name && account.is_some(),
            Self::UserInfo => node.is_none() && account.is_none(),
            Self::Legacy => true,
        }
    }

    /// The verb on whom is acted for.
    fn verb(self) -> String {
        if self.is_constrained() {
            format!("impersonate:{}", self.name())
        } else {
            "impersonate".into()
        }
    }
}

/// Whom `by` acts for when it asks for `wanted`, as far as that does not depend on the request. None: nobody allows it.
pub(super) fn effective(auth: &Auth, by: &User, wanted: &Wanted) -> Option<User> {
    let mut modes = MODES.iter().filter(|mode| mode.applies(by, &wanted.user));
    modes.find_map(|mode| whom(auth, *mode, by, &wanted.user).ok())
}

/// Whether the request may be made for `user`, which [`effective`] has found.
pub(super) fn check(
    auth: &Auth,
    impersonation: &Impersonation,
    user: &User,
    attributes: &Attributes,
) -> Result<(), Status> {
    let Impersonation { by, wanted } = impersonation;
    let mut first = None;
    for mode in MODES.iter().filter(|mode| mode.applies(by, &wanted.user)) {
        match on(auth, *mode, by, attributes).and_then(|()| whom(auth, *mode, by, &wanted.user)) {
            Ok(found) if found == *user => return Ok(()),
            // Another mode would act with other groups than those that the rest of this request has seen: refused, which only
            // callers see that were granted two modes, and one of them for other requests.
            Ok(_) => {}
            Err(refusal) => {
                first.get_or_insert(refusal);
            }
        }
    }
    let nobody = || Status::internal("all impersonation modes failed");
    Err(first.unwrap_or_else(nobody))
}

/// `impersonate-on:MODE:VERB` on what the request touches.
fn on(auth: &Auth, mode: Mode, by: &User, attributes: &Attributes) -> Result<(), Status> {
    if !mode.is_constrained() {
        return Ok(());
    }
    let verb = format!("impersonate-on:{}:{}", mode.name(), attributes.verb);
    let attributes = Attributes {
        verb,
        ..attributes.clone()
    };
    auth.require(by, &attributes)
}

/// `impersonate:MODE`, or `impersonate`, on every part of whom is acted for; who that is.
fn whom(auth: &Auth, mode: Mode, by: &User, wanted: &User) -> Result<User, Status> {
    let mut user = wanted.clone();
    auth.require(by, &on_name(mode, wanted, &mut user))?;
    if !wanted.uid.is_empty() {
        auth.require(by, &target(mode, "authentication.k8s.io", "uids", &wanted.uid))?;
    }
    for group in &wanted.groups {
        let attributes = target(mode, name_group(mode), "groups", group);
        let never = if !mode.is_constrained() {
            None
        } else if group.is_empty() {
            Some("impersonating the empty string group is not allowed")
        } else if group == super::MASTERS {
            Some("impersonating the system:masters group is not allowed")
        } else {
            None
        };
        if let Some(why) = never {
            return Err(forbidden(by, &attributes, why));
        }
        auth.require(by, &attributes)?;
    }
    for (key, value) in wanted
        .extra
        .iter()
        .flat_map(|(key, values)| values.iter().map(move |v| (key, v)))
    {
        let attributes = Attributes {
            subresource: key.clone(),
            ..target(mode, "authentication.k8s.io", "userextras", value)
        };
        if mode.is_constrained() && (key.is_empty() || value.is_empty()) {
            let why = "impersonating the empty string in extra is not allowed";
            return Err(forbidden(by, &attributes, why));
        }
        auth.require(by, &attributes)?;
    }
    Ok(user.with_everyone())
}

/// What is asked of the name; sets the groups that the name brings with it.
fn on_name(mode: Mode, wanted: &User, user: &mut User) -> Attributes {
    if let Some(node) = node_name(&wanted.name).filter(|_| mode.is_constrained()) {
        user.groups = vec![NODES.into()];
        // The grant for a ServiceAccount's own node does not depend on which that is.
        let name = if mode == Mode::AssociatedNode { "*" } else { node };
        return target(mode, name_group(mode), "nodes", name);
    }
    if let Some((namespace, name)) = account_of(&wanted.name) {
        if wanted.groups.is_empty() {
            user.groups = account_groups(namespace);
        }
        return Attributes {
            namespace: namespace.into(),
            ..target(mode, name_group(mode), "serviceaccounts", name)
        };
    }
    target(mode, name_group(mode), "users", &wanted.name)
}

/// The API group of users, groups and serviceaccounts as things to impersonate.
fn name_group(mode: Mode) -> &'static str {
    if mode.is_constrained() {
        "authentication.k8s.io"
    } else {
        ""
    }
}

fn target(mode: Mode, group: &str, resource: &str, name: &str) -> Attributes {
    Attributes {
        verb: mode.verb(),
        group: group.into(),
        version: "v1".into(),
        resource: resource.into(),
        name: name.into(),
        ..Attributes::default()
    }
}

fn node_name(user: &str) -> Option<&str> {
    user.strip_prefix("system:node:").filter(|name| is_subdomain(name))
}

/// The node of the pod that a ServiceAccount's token is bound to.
fn node_of_account(user: &User) -> Option<&str> {
    account_of(&user.name)?;
    match user
        .extra
        .get("authentication.kubernetes.io/node-name")
        .map(Vec::as_slice)
    {
        Some([node]) => Some(node),
        _ => None,
    }
}

#[cfg(test)]
mod tests;

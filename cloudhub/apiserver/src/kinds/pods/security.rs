//! Whether security contexts make sense: users, groups, seccomp, AppArmor, sysctls.

use std::collections::BTreeSet;

use super::volumes;
use crate::kinds::fields::At;
use crate::status::Errors;

/// The largest user and group that runtimes take.
const LARGEST_ID: i64 = i32::MAX as i64;

/// Checks the `securityContext` of a container.
pub(super) fn container(errors: &mut Errors, at: &At, host_users: bool) {
    if !at.is_set() {
        return;
    }
    for id in ["runAsUser", "runAsGroup"] {
        at.child(id).in_range(errors, 0, LARGEST_ID);
    }
    let mount = at.child("procMount");
    if mount.is_set() {
        mount.one_of(errors, &["Default", "Unmasked"]);
        if host_users && mount.text() == "Unmasked" {
            mount.invalid(errors, "`hostUsers` must be false to use `Unmasked`");
        }
    }
    seccomp(errors, &at.child("seccompProfile"));
    if at.child("allowPrivilegeEscalation").value == false {
        if at.child("privileged").is_true() {
            at.invalid(
                errors,
                "cannot set `allowPrivilegeEscalation` to false and `privileged` to true",
            );
        }
        let mut added = at.down(&["capabilities", "add"]).items();
        if added.any(|c| c.text() == "CAP_SYS_ADMIN") {
            let words = "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
            at.invalid(errors, words);
        }
    }
    app_armor(errors, &at.child("appArmorProfile"));
}

/// Checks the `securityContext` of a pod.
pub(super) fn pod(errors: &mut Errors, spec: &At) {
    let at = spec.child("securityContext");
    if !at.is_set() {
        return;
    }
    for id in ["fsGroup", "runAsUser", "runAsGroup"] {
        at.child(id).in_range(errors, 0, LARGEST_ID);
    }
    for group in at.child("supplementalGroups").items() {
        group.in_range(errors, 0, LARGEST_ID);
    }
    let shared = At::new(
        spec.child("shareProcessNamespace").value,
        format!("{}.shareProcessNamespace", at.path),
    );
    if shared.is_true() && spec.child("hostPID").is_true() {
        shared.invalid(errors, "ShareProcessNamespace and HostPID cannot both be enabled");
    }
    sysctls(errors, spec, &at.child("sysctls"));
    for (field, supported) in [
        ("fsGroupChangePolicy", ["Always", "OnRootMismatch"]),
        ("supplementalGroupsPolicy", ["Merge", "Strict"]),
        ("seLinuxChangePolicy", ["MountOption", "Recursive"]),
    ] {
        if let Some(policy) = at.child(field).set() {
            policy.one_of(errors, &supported);
        }
    }
    seccomp(errors, &at.child("seccompProfile"));
    app_armor(errors, &at.child("appArmorProfile"));
}

fn sysctls(errors: &mut Errors, spec: &At, list: &At) {
    let mut seen = BTreeSet::new();
    for sysctl in list.items() {
        let name = sysctl.child("name");
        if name.text().is_empty() {
            name.required(errors, "");
        } else if !is_sysctl(name.text()) {
            let words = "must have at most 253 characters and match regex \
                         ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";
            name.invalid(errors, words);
        } else if !seen.insert(name.text()) {
            name.duplicate(errors);
        }
        let dotted = name.text().replace('/', ".");
        let of_ipc = ["kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue."];
        if spec.child("hostNetwork").is_true() && dotted.starts_with("net.") {
            name.invalid(errors, "may not be specified when 'hostNetwork' is true");
        }
        if spec.child("hostIPC").is_true() && of_ipc.iter().any(|prefix| dotted.starts_with(prefix)) {
            name.invalid(errors, "may not be specified when 'hostIPC' is true");
        }
    }
}

fn is_sysctl(name: &str) -> bool {
    let edge = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    name.len() <= 253
        && name.split(['.', '/']).all(|part| {
            let bytes = part.as_bytes();
            let ends = bytes.first().is_some_and(|b| edge(*b)) && bytes.last().is_some_and(|b| edge(*b));
            ends && bytes.iter().all(|b| edge(*b) || matches!(b, b'-' | b'_'))
        })
}

const PROFILES: [&str; 3] = ["Localhost", "RuntimeDefault", "Unconfined"];

fn seccomp(errors: &mut Errors, at: &At) {
    if !at.is_set() {
        return;
    }
    let (kind, profile) = (at.child("type"), at.child("localhostProfile"));
    if kind.text().is_empty() {
        kind.required(errors, "type is required when seccompProfile is set");
    } else {
        kind.one_of(errors, &PROFILES);
    }
    if kind.text() != "Localhost" {
        if profile.is_set() {
            profile.invalid(errors, "can only be set when seccomp type is Localhost");
        }
    } else if profile.is_set() {
        volumes::descending_path(errors, &profile);
    } else {
        profile.required(errors, "must be set when seccomp type is Localhost");
    }
}

fn app_armor(errors: &mut Errors, at: &At) {
    if !at.is_set() {
        return;
    }
    let (kind, profile) = (at.child("type"), at.child("localhostProfile"));
    match kind.text() {
        "" => kind.required(errors, "type is required when appArmorProfile is set"),
        "Localhost" => {
            let name = profile.text();
            if name.trim() != name {
                profile.invalid(errors, "must not be padded with whitespace");
            } else if name.is_empty() {
                profile.required(errors, "must be set when AppArmor type is Localhost");
            }
            if name.len() > 4095 {
                errors.too_long(&profile.path, 4095);
            }
        }
        "RuntimeDefault" | "Unconfined" => {
            if profile.is_set() {
                profile.invalid(errors, "can only be set when AppArmor type is Localhost");
            }
        }
        _ => kind.one_of(errors, &PROFILES),
    }
}

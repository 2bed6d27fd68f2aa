//! ServiceAccount tokens: JWTs (ES256) that name the account, what they are bound to and for whom they are meant.
//!
//! A token is as good as what it names: the account, and the pod, Secret or Node that it is bound to, must still be there with
//! the same uid.

mod key;

use serde_json::{Value, json};
use time::Duration;
use uuid::Uuid;

pub(super) use key::SigningKey;

use key::Refused;

use super::authn::CREDENTIAL;
use super::{Auth, Identity, User, account_groups, account_user, admission, is_alive};
use crate::object::{self, items, now, text};
use crate::status::{Errors, Status};

/// Shortest life that may be asked for, seconds.
const MIN_SECONDS: i64 = 600;
/// Longest: the API's own bound.
const MAX_SECONDS: i64 = 1 << 32;
/// Where nothing is asked for.
const DEFAULT_SECONDS: i64 = 3600;
/// What the projected volume of admission asks for: a pod's token of this life really lives [`EXTENDED_SECONDS`], because old
/// clients read the file only once.
pub(super) const WARN_SECONDS: i64 = 3607;
const EXTENDED_SECONDS: i64 = 365 * 24 * 3600;
/// How far clocks may differ, and how long a credential outlives the deletion of what it is bound to.
const LEEWAY: i64 = 60;
const GROUP: &str = "authentication.k8s.io";

/// A valid token.
#[derive(Debug)]
pub(super) struct Verified {
    /// The account's user.
    pub(super) user: User,
    /// Those of the audiences asked for that it is meant for.
    pub(super) audiences: Vec<String>,
}

impl Auth {
    /// TokenRequest: a token for `account`. The caller is authorized already (`create` on `serviceaccounts/token`).
    ///
    /// # Errors
    /// 404, 403, 409, 422 as the real server.
    pub fn request_token(
        &self,
        identity: &Identity,
        namespace: &str,
        account: &str,
        mut body: Value,
    ) -> Result<Value, Status> {
        // Before defaults: a node's request for no audience is one for the audience that its pod does not name.
        admission::admit_token(self, identity, namespace, account, &body)?;
        same_name(&body, "name", account)?;
        same_name(&body, "namespace", namespace)?;
        let stored = self.need("", "serviceaccounts", namespace, account)?;
        let uid = object::uid(&stored).to_owned();
        let asked = object::uid(&body);
        if !asked.is_empty() && asked != uid {
            let why =
                format!("the UID in the token request ({asked}) does not match the UID of the service account ({uid})");
            return Err(Status::conflict(GROUP, "TokenRequest", account, &why));
        }
        fill(&mut body, &self.inner.config.audiences)?;
        let at = now();
        let metadata = object::metadata(&mut body);
        metadata.insert("name".into(), account.into());
        metadata.insert("namespace".into(), namespace.into());
        metadata.insert("uid".into(), uid.clone().into());
        metadata.insert("creationTimestamp".into(), object::timestamp(at).into());

        let mut kubernetes = json!({"namespace": namespace, "serviceaccount": {"name": account, "uid": uid}});
        let is_pod = self.bind(namespace, account, &body, &mut kubernetes)?;
        let audiences = strings(items(&body, "/spec/audiences"));
        let seconds = body.pointer("/spec/expirationSeconds").and_then(Value::as_i64);
        let seconds = seconds.unwrap_or(DEFAULT_SECONDS);
        let issued = at.unix_timestamp();
        let for_us = audiences.iter().all(|one| self.inner.config.audiences.contains(one));
        let life = if is_pod && seconds == WARN_SECONDS && for_us {
            kubernetes["warnafter"] = json!(issued + seconds);
            EXTENDED_SECONDS
        } else {
            seconds
        };
        let claims = json!({
            "aud": audiences,
            "exp": issued + life,
            "iat": issued,
            "iss": self.inner.config.issuer,
            "jti": Uuid::new_v4().to_string(),
            "kubernetes.io": kubernetes,
            "nbf": issued,
            "sub": account_user(namespace, account),
        });
        let expires = at + Duration::seconds(seconds);
        body["status"] = json!({
            "token": self.inner.key.sign(&claims).map_err(Status::internal)?,
            "expirationTimestamp": object::timestamp(expires),
        });
        body["kind"] = json!("TokenRequest");
        body["apiVersion"] = json!("authentication.k8s.io/v1");
        Ok(body)
    }

    /// What the token is bound to, into its claims; whether that is a pod.
    fn bind(&self, namespace: &str, account: &str, body: &Value, claims: &mut Value) -> Result<bool, Status> {
        let Some(reference) = body.pointer("/spec/boundObjectRef").filter(|r| !r.is_null()) else {
            return Ok(false);
        };
        let (kind, name) = (text(reference, "/kind"), text(reference, "/name"));
        let api_version = text(reference, "/apiVersion");
        let (plural, claim, place) = match (api_version, kind) {
            ("v1", "Pod") => ("pods", "pod", namespace),
            ("v1", "Secret") => ("secrets", "secret", namespace),
            ("v1", "Node") => ("nodes", "node", ""),
            _ => {
                return Err(Status::bad_request(format!(
                    "cannot bind token to object of type {api_version}, Kind={kind}"
                )));
            }
        };
        let target = self.need("", plural, place, name)?;
        if claim == "pod" && text(&target, "/spec/serviceAccountName") != account {
            return Err(Status::bad_request(format!(
                "cannot bind token for serviceaccount {account:?} to pod running with different serviceaccount name."
            )));
        }
        let (wanted, uid) = (text(reference, "/uid"), object::uid(&target));
        if !wanted.is_empty() && wanted != uid {
            let why = uid_mismatch(wanted);
            return Err(Status::conflict("", kind, name, &why));
        }
        let node = text(&target, "/spec/nodeName");
        if claim == "pod" && !node.is_empty() {
            claims["node"] = json!({"name": node});
            if let Some(stored) = self.read("", "nodes", "", node) {
                claims["node"]["uid"] = json!(object::uid(&stored));
            }
        }
        claims[claim] = json!({"name": name, "uid": uid});
        Ok(claim == "pod")
    }

    /// `/.well-known/openid-configuration`. `address` is this API's `HOST:PORT` as clients reach it.
    pub fn openid_configuration(&self, address: &str) -> Value {
        json!({
            "issuer": self.inner.config.issuer,
            "jwks_uri": format!("https://{address}/openid/v1/jwks"),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
        })
    }

    /// `/openid/v1/jwks`.
    pub fn jwks(&self) -> Value {
        json!({"keys": [self.inner.key.jwk()]})
    }
}

/// The words for a bound object that is not the one that was meant.
pub(super) fn uid_mismatch(wanted: &str) -> String {
    format!(
        "the UID in the bound object reference ({wanted}) does not match the UID in record. The object might have been deleted and then recreated"
    )
}

/// Name and namespace may be left out of the body, but not differ.
fn same_name(body: &Value, field: &str, expected: &str) -> Result<(), Status> {
    let said = text(body, &format!("/metadata/{field}"));
    if said.is_empty() || said == expected {
        return Ok(());
    }
    let mut errors = Errors::default();
    let detail = format!("must match the service account {field} if specified");
    errors.invalid(format!("metadata.{field}"), &json!(said), &detail);
    Err(Status::invalid(
        GROUP,
        "TokenRequest",
        text(body, "/metadata/name"),
        errors,
    ))
}

/// Defaults and bounds of the spec.
fn fill(body: &mut Value, audiences: &[String]) -> Result<(), Status> {
    let spec = object::map(body, "spec");
    object::default(spec, "expirationSeconds", DEFAULT_SECONDS);
    // The one field that the API writes as null.
    spec.entry("boundObjectRef").or_insert(Value::Null);
    if spec
        .get("audiences")
        .and_then(Value::as_array)
        .is_none_or(Vec::is_empty)
    {
        spec.insert("audiences".into(), json!(audiences));
    }
    let seconds = spec.get("expirationSeconds").cloned().unwrap_or_default();
    let mut errors = Errors::default();
    match seconds.as_i64() {
        Some(n) if n < MIN_SECONDS => {
            let detail = "may not specify a duration less than 10 minutes";
            errors.invalid("spec.expirationSeconds", &seconds, detail);
        }
        Some(n) if n > MAX_SECONDS => {
            let detail = "may not specify a duration larger than 2^32 seconds";
            errors.invalid("spec.expirationSeconds", &seconds, detail);
        }
        Some(_) => {}
        None => {
            return Err(Status::bad_request("spec.expirationSeconds must be a whole number"));
        }
    }
    if errors.is_empty() {
        return Ok(());
    }
    Err(Status::invalid(GROUP, "TokenRequest", "", errors))
}

fn strings(list: &[Value]) -> Vec<String> {
    let texts = list.iter().filter_map(Value::as_str);
    texts.map(str::to_owned).collect()
}

/// Whether `token` is ours, in time, for one of `audiences`, and all that it names is still there.
///
/// # Errors
/// What TokenReview says about it; the caller of the API gets 401.
pub(super) fn verify(auth: &Auth, token: &str, audiences: &[String]) -> Result<Verified, String> {
    const INVALID: &str = "invalid bearer token";
    // The real server asks an authenticator of its own first, which adds its refusal.
    let also = |why: String| format!("[{INVALID}, {why}]");
    let claims = match auth.inner.key.open(token, &auth.inner.config.issuer) {
        Ok(claims) => claims,
        Err(Refused::Unknown) => return Err(INVALID.into()),
        Err(Refused::Forged) => return Err(also("go-jose/go-jose: error in cryptographic primitive".into())),
    };
    let meant = match claims.get("aud") {
        Some(Value::String(one)) => vec![one.clone()],
        Some(Value::Array(list)) => strings(list),
        _ => auth.inner.config.audiences.clone(),
    };
    let matching: Vec<String> = meant.iter().filter(|one| audiences.contains(one)).cloned().collect();
    if matching.is_empty() {
        let (meant, wanted) = (super::rbac::go_list(&meant), super::rbac::go_list(audiences));
        return Err(also(format!(
            "token audiences {meant} is invalid for the target audiences {wanted}"
        )));
    }
    in_time(&claims).map_err(|why| also(why.into()))?;
    let user = still_there(auth, &claims).map_err(also)?;
    Ok(Verified {
        user,
        audiences: matching,
    })
}

fn in_time(claims: &Value) -> Result<(), &'static str> {
    let at = now().unix_timestamp();
    let claim = |name: &str| claims.get(name).and_then(Value::as_i64);
    if claim("nbf").is_some_and(|from| at + LEEWAY < from) {
        return Err("service account token is not valid yet");
    }
    if claim("exp").is_none_or(|until| at - LEEWAY > until) {
        return Err("service account token has expired");
    }
    if claim("iat").is_some_and(|issued| at + LEEWAY < issued) {
        return Err("service account token is issued in the future");
    }
    Ok(())
}

/// The user of the account that the claims name, when all that they name still exists.
fn still_there(auth: &Auth, claims: &Value) -> Result<User, String> {
    let inner = claims.get("kubernetes.io").unwrap_or(&Value::Null);
    let namespace = text(inner, "/namespace");
    let (name, uid) = (text(inner, "/serviceaccount/name"), text(inner, "/serviceaccount/uid"));
    let account = auth.read("", "serviceaccounts", namespace, name);
    let account = account.ok_or_else(|| format!("serviceaccounts {name:?} not found"))?;
    if object::uid(&account) != uid {
        return Err(format!(
            "service account UID ({}) does not match claim ({uid})",
            object::uid(&account)
        ));
    }
    if !is_alive(&account, LEEWAY) {
        return Err(format!("service account {namespace}/{name} has been deleted"));
    }
    let pod_bound = inner.get("pod").is_some();
    for (claim, plural, place, kind) in [
        ("secret", "secrets", namespace, "secret"),
        ("pod", "pods", namespace, "pod"),
        ("node", "nodes", "", "node"),
    ] {
        // A pod's token also says which node it is on, which is information only.
        if claim == "node" && pod_bound {
            continue;
        }
        let Some(reference) = inner.get(claim) else { continue };
        let stored = auth.read("", plural, place, text(reference, "/name"));
        let stored = stored.filter(|object| is_alive(object, LEEWAY));
        let stored = stored.ok_or("service account token has been invalidated")?;
        let (found, wanted) = (object::uid(&stored), text(reference, "/uid"));
        if found != wanted {
            return Err(format!(
                "{kind} UID ({found}) does not match service account {kind} ref claim ({wanted})"
            ));
        }
    }
    Ok(user_of(claims, inner, namespace, name))
}

fn user_of(claims: &Value, inner: &Value, namespace: &str, name: &str) -> User {
    let mut user = User {
        name: account_user(namespace, name),
        uid: text(inner, "/serviceaccount/uid").into(),
        groups: account_groups(namespace),
        ..User::default()
    };
    let jti = text(claims, "/jti");
    if !jti.is_empty() {
        user.extra.insert(CREDENTIAL.into(), vec![format!("JTI={jti}")]);
    }
    for (key, pointer) in [
        ("pod-name", "/pod/name"),
        ("pod-uid", "/pod/uid"),
        ("node-name", "/node/name"),
        ("node-uid", "/node/uid"),
    ] {
        let value = text(inner, pointer);
        if !value.is_empty() {
            let key = format!("authentication.kubernetes.io/{key}");
            user.extra.insert(key, vec![value.into()]);
        }
    }
    user.with_everyone()
}

#[cfg(test)]
mod tests;

//! Who sends a request: client certificate, bearer token, nobody; and the impersonation headers.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::HeaderMap;
use http::header::{AUTHORIZATION, SEC_WEBSOCKET_PROTOCOL};
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::impersonation::Wanted;
use super::{ANONYMOUS, Auth, User, tokens};
use crate::status::Status;

/// Key in a user's extra: which credential was shown.
pub(super) const CREDENTIAL: &str = "authentication.kubernetes.io/credential-id";
/// Browsers cannot set Authorization on a WebSocket: the token is one of the protocols that they offer.
const TOKEN_PROTOCOL: &str = "base64url.bearer.authorization.k8s.io.";
/// Kubernetes' own OID for a uid in a certificate's subject.
const UID_OID: &str = "1.3.6.1.4.1.57683.2";
const EXTRA: &str = "impersonate-extra-";

/// Who sends a request.
///
/// # Errors
/// 401.
pub(super) fn authenticate(auth: &Auth, certificate: Option<&[u8]>, headers: &HeaderMap) -> Result<User, Status> {
    if let Some(user) = certificate.map(from_certificate).transpose()?.flatten() {
        return Ok(user.with_everyone());
    }
    if let Some(token) = bearer(headers)? {
        let audiences = &auth.inner.config.audiences;
        let verified = tokens::verify(auth, &token, audiences).map_err(|error| {
            tracing::debug!(error, "a token is refused");
            Status::unauthorized()
        })?;
        return Ok(verified.user);
    }
    let anonymous = User {
        name: ANONYMOUS.into(),
        ..User::default()
    };
    Ok(anonymous.with_everyone())
}

/// CN = user, O = groups. None where there is no CN.
pub(super) fn from_certificate(der: &[u8]) -> Result<Option<User>, Status> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|_| Status::unauthorized())?;
    let subject = certificate.subject();
    let name = subject.iter_common_name().last().and_then(|cn| cn.as_str().ok());
    let Some(name) = name.filter(|name| !name.is_empty()) else {
        return Ok(None);
    };
    let organizations = subject.iter_organization().filter_map(|o| o.as_str().ok());
    let uid = subject
        .iter_attributes()
        .find(|attribute| attribute.attr_type().to_id_string() == UID_OID);
    let uid = uid.and_then(|attribute| attribute.as_str().ok()).unwrap_or_default();
    let fingerprint: String = Sha256::digest(der).iter().map(|byte| format!("{byte:02x}")).collect();
    let credential = format!("X509SHA256={fingerprint}");
    Ok(Some(User {
        name: name.into(),
        uid: uid.into(),
        groups: organizations.map(str::to_owned).collect(),
        extra: [(CREDENTIAL.to_owned(), vec![credential])].into(),
    }))
}

/// The token of `Authorization: Bearer`, or of a WebSocket's protocols.
pub(super) fn bearer(headers: &HeaderMap) -> Result<Option<String>, Status> {
    let header = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    if let Some((scheme, rest)) = header.and_then(|value| value.trim().split_once(' ')) {
        let token = rest.split(' ').next().unwrap_or_default();
        if scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() {
            return Ok(Some(token.into()));
        }
    }
    let offers = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter();
    let offers = offers.filter_map(|value| value.to_str().ok());
    let mut encoded = offers
        .flat_map(|line| line.split(','))
        .filter_map(|protocol| protocol.trim().strip_prefix(TOKEN_PROTOCOL));
    let Some(token) = encoded.next() else {
        return Ok(None);
    };
    if encoded.next().is_some() {
        return Err(Status::unauthorized());
    }
    let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| Status::unauthorized())?;
    let token = String::from_utf8(bytes).map_err(|_| Status::unauthorized())?;
    Ok(Some(token))
}

/// Whom the impersonation headers name; None: there are none.
///
/// # Errors
/// 400 for such headers without a user.
pub(super) fn wanted(headers: &HeaderMap) -> Result<Option<Wanted>, Status> {
    let all = |name: &str| -> Result<Vec<String>, Status> { headers.get_all(name).iter().map(utf8).collect() };
    let first = |name: &str| -> Result<String, Status> { headers.get(name).map_or(Ok(String::new()), utf8) };
    let mut user = User {
        name: first("impersonate-user")?,
        uid: first("impersonate-uid")?,
        groups: all("impersonate-group")?,
        ..User::default()
    };
    let mut extras = false;
    for name in headers.keys().filter(|name| name.as_str().starts_with(EXTRA)) {
        extras = true;
        let key = unescape(&name.as_str()[EXTRA.len()..]);
        user.extra.entry(key).or_default().extend(all(name.as_str())?);
    }
    if !user.name.is_empty() {
        return Ok(Some(Wanted { user }));
    }
    if user.uid.is_empty() && user.groups.is_empty() && !extras {
        return Ok(None);
    }
    Err(Status::bad_request(format!(
        "requested {} without impersonating a user name",
        go_syntax(&user)
    )))
}

fn utf8(value: &http::HeaderValue) -> Result<String, Status> {
    String::from_utf8(value.as_bytes().to_vec()).map_err(|_| Status::bad_request("a header's value is not UTF-8"))
}

/// Percent-decodes a key; one that does not decode is what it says.
fn unescape(key: &str) -> String {
    let mut bytes = Vec::with_capacity(key.len());
    let mut rest = key.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        if *first != b'%' {
            bytes.push(*first);
            rest = tail;
            continue;
        }
        let digits = tail.get(..2).and_then(|pair| str::from_utf8(pair).ok());
        let Some(byte) = digits.and_then(|pair| u8::from_str_radix(pair, 16).ok()) else {
            return key.into();
        };
        bytes.push(byte);
        rest = &tail[2..];
    }
    String::from_utf8(bytes).unwrap_or_else(|_| key.into())
}

/// The real server shows its own struct in that message.
fn go_syntax(user: &User) -> String {
    let strings = |list: &[String]| {
        if list.is_empty() {
            return "[]string(nil)".to_owned();
        }
        let quoted: Vec<String> = list.iter().map(|text| format!("{text:?}")).collect();
        format!("[]string{{{}}}", quoted.join(", "))
    };
    let pairs = user
        .extra
        .iter()
        .map(|(key, values)| format!("{key:?}:{}", strings(values)));
    let pairs: Vec<String> = pairs.collect();
    let extra = if pairs.is_empty() {
        "map[string][]string(nil)".to_owned()
    } else {
        format!("map[string][]string{{{}}}", pairs.join(", "))
    };
    let groups = strings(&user.groups);
    format!(
        "&user.DefaultInfo{{Name:\"\", UID:{:?}, Groups:{groups}, Extra:{extra}}}",
        user.uid
    )
}

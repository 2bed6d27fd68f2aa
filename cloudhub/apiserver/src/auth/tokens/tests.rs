use http::HeaderMap;
use http::header::AUTHORIZATION;

use super::super::testing::{Fixture, node, user};
use super::*;

const AUDIENCE: &str = "https://kubernetes.default.svc";

fn admin() -> Identity {
    Identity::new(user("admin"))
}

fn request(seconds: i64, pod: Option<&str>) -> Value {
    let mut spec = json!({"expirationSeconds": seconds});
    if let Some(pod) = pod {
        spec["boundObjectRef"] = json!({"apiVersion": "v1", "kind": "Pod", "name": pod, "uid": format!("{pod}-uid")});
    }
    json!({"spec": spec})
}

fn token(review: &Value) -> &str {
    text(review, "/status/token")
}

fn ask(fixture: &Fixture, identity: &Identity, body: Value) -> Result<Value, Status> {
    fixture.auth.request_token(identity, "default", "default", body)
}

#[tokio::test]
async fn a_token_says_who_it_is_for_and_what_it_is_bound_to() {
    let fixture = Fixture::new().await;
    fixture
        .put("", "nodes", json!({"metadata": {"name": "robot", "uid": "robot-uid"}}))
        .await;
    fixture.pod("web", "robot").await;
    let answer = ask(&fixture, &admin(), request(WARN_SECONDS, Some("web"))).unwrap();
    assert_eq!(answer["spec"]["audiences"], json!([AUDIENCE]));
    let mut headers = HeaderMap::new();
    headers.insert(AUTHORIZATION, format!("Bearer {}", token(&answer)).parse().unwrap());
    let user = fixture.auth.identify(None, &headers).unwrap().user;
    assert_eq!(user.name, "system:serviceaccount:default:default");
    assert_eq!(user.uid, "account-uid");
    assert_eq!(
        user.groups,
        [
            "system:serviceaccounts",
            "system:serviceaccounts:default",
            "system:authenticated"
        ]
    );
    let extra = |key: &str| user.extra[&format!("authentication.kubernetes.io/{key}")][0].clone();
    assert_eq!(extra("pod-name"), "web");
    assert_eq!(extra("pod-uid"), "web-uid");
    assert_eq!(extra("node-name"), "robot");
    assert_eq!(extra("node-uid"), "robot-uid");
    assert!(extra("credential-id").starts_with("JTI="));
    let claims = fixture.auth.inner.key.open(token(&answer), AUDIENCE).unwrap();
    let (issued, expires) = (claims["iat"].as_i64().unwrap(), claims["exp"].as_i64().unwrap());
    assert_eq!(
        expires - issued,
        EXTENDED_SECONDS,
        "a pod's token of 3607 s lives a year"
    );
    assert_eq!(claims["kubernetes.io"]["warnafter"], json!(issued + WARN_SECONDS));
}

#[tokio::test]
async fn a_token_dies_with_its_pod() {
    let fixture = Fixture::new().await;
    let pod = fixture.pod("web", "robot").await;
    let answer = ask(&fixture, &admin(), request(600, Some("web"))).unwrap();
    let audiences = [AUDIENCE.to_owned()];
    verify(&fixture.auth, token(&answer), &audiences).unwrap();
    fixture.delete("", "pods", &pod).await;
    let error = verify(&fixture.auth, token(&answer), &audiences).unwrap_err();
    assert_eq!(
        error,
        "[invalid bearer token, service account token has been invalidated]"
    );
    let mut again = pod;
    again["metadata"]["uid"] = json!("another");
    fixture.put("", "pods", again).await;
    let error = verify(&fixture.auth, token(&answer), &audiences).unwrap_err();
    assert!(error.contains("pod UID (another) does not match"), "{error}");
}

#[tokio::test]
async fn a_token_that_is_late_forged_or_for_others_is_refused() {
    let fixture = Fixture::new().await;
    let key = &fixture.auth.inner.key;
    let audiences = [AUDIENCE.to_owned()];
    let answer = ask(&fixture, &admin(), request(600, None)).unwrap();
    let mut claims = key.open(token(&answer), AUDIENCE).unwrap();
    verify(&fixture.auth, &key.sign(&claims).unwrap(), &audiences).unwrap();
    let others = ["vault".to_owned()];
    let error = verify(&fixture.auth, token(&answer), &others).unwrap_err();
    assert!(
        error.contains("is invalid for the target audiences [\"vault\"]"),
        "{error}"
    );
    claims["exp"] = json!(now().unix_timestamp() - 2 * LEEWAY);
    let error = verify(&fixture.auth, &key.sign(&claims).unwrap(), &audiences).unwrap_err();
    assert_eq!(error, "[invalid bearer token, service account token has expired]");
    let other = Fixture::new().await;
    let answer = ask(&other, &admin(), request(600, None)).unwrap();
    let error = verify(&fixture.auth, token(&answer), &audiences).unwrap_err();
    assert_eq!(
        error,
        "[invalid bearer token, go-jose/go-jose: error in cryptographic primitive]"
    );
    claims["iss"] = json!("https://elsewhere");
    let error = verify(&fixture.auth, &key.sign(&claims).unwrap(), &audiences).unwrap_err();
    assert_eq!(error, "invalid bearer token");
    for rubbish in ["", ".", "..", "a.b.c", "e30.e30.e30", "\u{0}"] {
        verify(&fixture.auth, rubbish, &audiences).unwrap_err();
    }
    let mut headers = HeaderMap::new();
    headers.insert(AUTHORIZATION, "Bearer rubbish".parse().unwrap());
    assert_eq!(fixture.auth.identify(None, &headers).unwrap_err().code, 401);
}

#[tokio::test]
async fn a_life_below_ten_minutes_is_refused_with_the_real_words() {
    let fixture = Fixture::new().await;
    let refusal = ask(&fixture, &admin(), request(10, None)).unwrap_err();
    assert_eq!(refusal.code, 422);
    assert_eq!(
        refusal.message,
        "TokenRequest.authentication.k8s.io \"\" is invalid: spec.expirationSeconds: Invalid value: 10: may not specify a duration less than 10 minutes"
    );
    let refusal = fixture
        .auth
        .request_token(&admin(), "default", "nobody", request(600, None));
    assert_eq!(refusal.unwrap_err().message, "serviceaccounts \"nobody\" not found");
}

#[tokio::test]
async fn a_node_gets_tokens_of_its_own_pods_for_the_audience_that_they_name() {
    let fixture = Fixture::new().await;
    fixture.pod("web", "robot").await;
    ask(&fixture, &node("robot"), request(WARN_SECONDS, Some("web"))).unwrap();
    let words = |result: Result<Value, Status>| result.unwrap_err().message;
    let refused = words(ask(&fixture, &node("other"), request(600, Some("web"))));
    assert!(
        refused.ends_with("node requested token bound to a pod scheduled on a different node"),
        "{refused}"
    );
    let refused = words(ask(&fixture, &node("robot"), request(600, None)));
    assert!(
        refused.ends_with("node requested token not bound to a pod"),
        "{refused}"
    );
    let mut body = request(600, Some("web"));
    body["spec"]["audiences"] = json!(["vault"]);
    let refused = words(ask(&fixture, &node("robot"), body));
    assert!(
        refused.contains("audience \"vault\" not found in pod spec volume"),
        "{refused}"
    );
}

#[tokio::test]
async fn what_is_published_about_the_key_verifies_its_tokens() {
    let fixture = Fixture::new().await;
    let jwks = fixture.auth.jwks();
    assert_eq!(jwks["keys"][0]["alg"], "ES256");
    assert_eq!(text(&jwks, "/keys/0/x").len(), 43);
    let configuration = fixture.auth.openid_configuration("hub:6443");
    assert_eq!(configuration["jwks_uri"], "https://hub:6443/openid/v1/jwks");
    assert_eq!(configuration["issuer"], AUDIENCE);
}

use super::super::testing::{Fixture, node, user};
use super::*;

fn ask(fixture: &Fixture, identity: &Identity, plural: &str, object: Value) -> Result<Value, Status> {
    create(&fixture.auth, identity, plural, "", object)
}

#[tokio::test]
async fn who_am_i() {
    let fixture = Fixture::new().await;
    let review = ask(&fixture, &node("robot"), "selfsubjectreviews", json!({})).unwrap();
    assert_eq!(review["kind"], "SelfSubjectReview");
    assert_eq!(review["status"]["userInfo"]["username"], "system:node:robot");
    assert_eq!(
        review["status"]["userInfo"]["groups"],
        json!(["system:nodes", "system:authenticated"])
    );
}

#[tokio::test]
async fn can_i_and_can_someone() {
    let fixture = Fixture::new().await;
    let list = json!([{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}]);
    fixture.grant("bob", list).await;
    let attributes = json!({"verb": "list", "resource": "pods", "namespace": "default"});
    let own = json!({"spec": {"resourceAttributes": attributes}});
    let bob = Identity::new(user("bob"));
    let review = ask(&fixture, &bob, "selfsubjectaccessreviews", own.clone()).unwrap();
    assert_eq!(review["status"]["allowed"], true);
    assert!(text(&review, "/status/reason").starts_with("RBAC: allowed by ClusterRoleBinding"));
    let alice = Identity::new(user("alice"));
    let review = ask(&fixture, &alice, "selfsubjectaccessreviews", own).unwrap();
    assert_eq!(review["status"], json!({"allowed": false}));
    let about = json!({"spec": {"user": "bob", "resourceAttributes": attributes}});
    let review = ask(&fixture, &alice, "subjectaccessreviews", about).unwrap();
    assert_eq!(review["status"]["allowed"], true);
    let about = json!({"spec": {"groups": ["system:masters"], "nonResourceAttributes": {"path": "/x", "verb": "get"}}});
    let review = ask(&fixture, &alice, "subjectaccessreviews", about).unwrap();
    assert_eq!(review["status"], json!({"allowed": true}));
}

#[tokio::test]
async fn a_local_review_stays_in_its_namespace() {
    let fixture = Fixture::new().await;
    let review = |namespace: &str| {
        json!({
            "metadata": {"namespace": namespace},
            "spec": {"user": "bob", "resourceAttributes": {"verb": "get", "resource": "pods", "namespace": "default"}},
        })
    };
    let alice = Identity::new(user("alice"));
    let asked = |object| create(&fixture.auth, &alice, "localsubjectaccessreviews", "default", object);
    assert_eq!(asked(review("default")).unwrap()["status"]["allowed"], false);
    assert_eq!(asked(review("kube-system")).unwrap_err().code, 400);
    let mut elsewhere = review("default");
    elsewhere["spec"]["resourceAttributes"]["namespace"] = json!("kube-system");
    let refusal = asked(elsewhere).unwrap_err();
    assert!(refusal.message.contains("must match metadata.namespace"), "{refusal}");
}

#[tokio::test]
async fn a_question_that_makes_no_sense_is_invalid() {
    let fixture = Fixture::new().await;
    let refusal = ask(&fixture, &node("robot"), "subjectaccessreviews", json!({"spec": {}})).unwrap_err();
    assert_eq!(refusal.code, 422);
    let fields: Vec<_> = refusal
        .details
        .unwrap()
        .causes
        .iter()
        .map(|c| c.field.clone())
        .collect();
    assert_eq!(fields, ["spec.resourceAttributes", "spec.user"]);
    let refusal = ask(&fixture, &node("robot"), "tokenreviews", json!({"spec": {}})).unwrap_err();
    assert_eq!(refusal.message, "token is required for TokenReview in authentication");
}

#[tokio::test]
async fn what_can_i_is_a_list_of_rules() {
    let fixture = Fixture::new().await;
    let spec = json!({"spec": {"namespace": "default"}});
    let bob = Identity::new(user("bob"));
    let review = ask(&fixture, &bob, "selfsubjectrulesreviews", spec.clone()).unwrap();
    assert_eq!(review["status"]["incomplete"], false);
    let resources = items(&review, "/status/resourceRules");
    assert!(
        resources
            .iter()
            .any(|rule| rule["resources"] == json!(["selfsubjectreviews"]))
    );
    assert!(!items(&review, "/status/nonResourceRules").is_empty());
    let review = ask(&fixture, &node("robot"), "selfsubjectrulesreviews", spec).unwrap();
    assert_eq!(review["status"]["incomplete"], true);
    assert_eq!(
        review["status"]["evaluationError"],
        "node authorizer does not support user rule resolution"
    );
}

#[tokio::test]
async fn a_token_review_tells_whose_token_it_is() {
    let fixture = Fixture::new().await;
    let admin = Identity::new(user("admin"));
    let answer = fixture
        .auth
        .request_token(&admin, "default", "default", json!({"spec": {}}));
    let token = text(&answer.unwrap(), "/status/token").to_owned();
    let review = ask(&fixture, &admin, "tokenreviews", json!({"spec": {"token": token}})).unwrap();
    assert_eq!(review["status"]["authenticated"], true);
    assert_eq!(
        review["status"]["user"]["username"],
        "system:serviceaccount:default:default"
    );
    assert_eq!(review["status"]["audiences"], json!(["https://kubernetes.default.svc"]));
    let review = ask(&fixture, &admin, "tokenreviews", json!({"spec": {"token": "x"}})).unwrap();
    assert_eq!(review["status"], json!({"user": {}, "error": "invalid bearer token"}));
}

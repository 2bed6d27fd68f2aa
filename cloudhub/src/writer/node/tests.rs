use super::*;

fn node(status: &str, reason: &str) -> Value {
    json!({"metadata": {"annotations": {AGENT_ANNOTATION: "a1"}}, "status": {"nodeInfo": {"bootID": "b1"}, "conditions": [
        {"type": "EdgeConnected", "status": status, "reason": reason, "message": "m", "lastTransitionTime": "T"}]}})
}

#[test]
fn why_a_node_is_back_follows_from_its_boot_and_its_process() {
    let reason = |node: &Value, boot, agent| came_back(node, boot, agent).0["reason"].clone();
    let away = node("False", "LinkLost");
    assert_eq!(reason(&away, "b1", "a1"), "Connected");
    assert_eq!(reason(&away, "b1", "a2"), "AgentRestarted");
    assert_eq!(reason(&away, "b2", "a2"), "PowerLost");
    let there = node("True", "PowerLost");
    assert_eq!(reason(&there, "b1", "a1"), "PowerLost", "a new session changes nothing");
    assert_eq!(reason(&there, "b1", "a2"), "AgentRestarted");
    assert_eq!(reason(&json!({}), "b1", "a1"), "Connected");
    assert_eq!(
        came_back(&away, "b1", "a1").0["message"],
        "the session answers; it was away since T"
    );
    assert_eq!(came_back(&there, "b1", "a1").0["message"], "m");
    let again = node("True", "AgentRestarted");
    assert!(came_back(&again, "b1", "a2").1, "twice in one second is two events");
    assert!(!came_back(&again, "b1", "a1").1);
}

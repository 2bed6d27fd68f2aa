use super::*;
use relay::Lineage;
use wire::proto::{Mark, Place};

fn view(pods: u64, revision: u64, lineage: &str) -> NodeView {
    NodeView {
        identity: Some(ApiIdentity("a".into())),
        marks: BTreeMap::from([(Kind::Pod, pods)]),
        revision,
        lineage: Arc::new(Lineage::parse(lineage)),
        ..NodeView::default()
    }
}

fn hello(pods: u64, revision: u64, number: u64) -> Hello {
    Hello {
        identity: "a".into(),
        marks: vec![Mark {
            kind: "Pod".into(),
            resource_version: pods,
        }],
        place: Some(Place {
            number,
            id: 7,
            revision,
        }),
        ..Hello::default()
    }
}

#[test]
fn a_hub_is_behind_an_edge_that_has_seen_a_later_pod_secret_or_point() {
    let view = view(10, 12, "1 07 0\n2 08 0\n");
    assert!(!is_behind(&view, &hello(10, 12, 2)));
    for later in [hello(11, 12, 2), hello(10, 13, 2), hello(10, 12, 3)] {
        assert!(is_behind(&view, &later), "{later:?}");
    }
    let other = Hello {
        identity: "b".into(),
        ..hello(11, 13, 3)
    };
    assert!(!is_behind(&view, &other), "another API's numbers say nothing");
}

#[test]
fn an_api_that_listed_anew_and_lacks_what_the_edge_has_seen_went_back() {
    let listed = view(20, 20, "1 07 0\n");
    assert!(
        !went_back(&listed, &hello(19, 20, 1)),
        "another kind is behind, and will follow"
    );
    assert!(went_back(&listed, &hello(19, 21, 1)));
    assert!(went_back(&listed, &hello(19, 20, 2)), "its number of points is too low");
}

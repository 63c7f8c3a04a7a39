//! Who reads a topic, on all nodes.

use super::*;

fn news() -> TopicName {
    TopicName::new("news").unwrap()
}

fn name(name: &str) -> SenderName {
    SenderName::new(name).unwrap()
}

/// The members of the topic on all nodes, as a node finds them.
async fn members(engine: &Engine) -> Vec<String> {
    let page = engine.members(&news(), None, 9).await;
    assert_eq!(page.count, page.members.len());
    page.members.iter().map(ToString::to_string).collect()
}

pub(super) async fn members_are_found_by_name_and_once(lab: Lab) {
    let (engine, hubs) = lab.engine();
    assert!(members(&engine).await.is_empty());
    let join = |one| hubs.members().join(&news(), name(one));
    let (bob, _ann, _again) = (join("bob"), join("ann"), join("ann"));
    assert_eq!(members(&engine).await, ["ann", "bob"]);
    let page = engine.members(&news(), Some(&name("ann")), 1).await;
    assert_eq!((page.count, page.members), (2, vec![name("bob")]));
    drop(bob);
    assert_eq!(members(&engine).await, ["ann"]);
}

pub(super) async fn a_node_knows_the_members_of_the_others_and_hears_of_changes(lab: Lab) {
    let (one, hubs) = lab.engine();
    let (other, other_hubs) = lab.open(lab.settings());
    let here = hubs.members().join(&news(), name("ann"));
    let _elsewhere = [name("ann"), name("bob")].map(|name| other_hubs.members().join(&news(), name));
    for engine in [&one, &other] {
        assert_eq!(members(engine).await, ["ann", "bob"]);
    }
    let changed = hubs.members().take_changed();
    assert_eq!((&changed.here, &changed.elsewhere), (&vec![news()], &vec![]));
    one.announce_members(&changed.here);
    let heard = async {
        while other_hubs.members().take_changed().elsewhere != [news()] {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(Duration::from_secs(10), heard).await.expect("the other node hears of it");
    assert!(hubs.members().take_changed().elsewhere.is_empty(), "no node hears of its own changes");
    drop(here);
    assert_eq!(members(&other).await, ["ann", "bob"], "she still reads on the other node");
}

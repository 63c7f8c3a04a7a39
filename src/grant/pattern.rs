//! Lists of allowed names and addresses. An item is a name, or a prefix followed by `*`.

use serde::Deserialize;

use crate::protocol::To;

/// A name, or a prefix followed by `*`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
struct Pattern(String);

impl Pattern {
    fn allows(&self, name: &str) -> bool {
        match self.0.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix),
            None => self.0 == name,
        }
    }
}

/// A list of allowed names.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Patterns(Vec<Pattern>);

impl Patterns {
    /// Whether an item allows this name.
    #[must_use]
    pub fn allow(&self, name: &str) -> bool {
        self.0.iter().any(|pattern| pattern.allows(name))
    }
}

/// A list of allowed addresses. An item is `user:`, `session:`, `topic:` or `backend:` and a name. `*` allows every address.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Vec<String>")]
pub struct SendPatterns(Patterns);

impl TryFrom<Vec<String>> for SendPatterns {
    type Error = String;

    fn try_from(items: Vec<String>) -> Result<Self, Self::Error> {
        for item in &items {
            let kind = item.split_once(':').map(|(kind, _)| kind);
            if item != "*" && !matches!(kind, Some("user" | "session" | "topic" | "backend")) {
                let item: String = item.chars().take(64).collect();
                return Err(format!(
                    "`send` holds `{item}`; its items begin with user:, session:, topic: or backend:, like topic:news or user:*"
                ));
            }
        }
        Ok(Self(Patterns(items.into_iter().map(Pattern).collect())))
    }
}

impl SendPatterns {
    /// Whether an item allows this address.
    #[must_use]
    pub fn allow(&self, to: &To) -> bool {
        match to {
            // The name may be a session or a user. Both must be allowed.
            To::Peer(name) => {
                self.0.allow(&format!("session:{name}")) && self.0.allow(&format!("user:{name}"))
            }
            to => self.0.allow(&Self::item(to)),
        }
    }

    /// The item that allows exactly this address.
    #[must_use]
    pub fn item(to: &To) -> String {
        match to {
            To::Session(name) | To::Peer(name) => format!("session:{name}"),
            To::User(name) => format!("user:{name}"),
            To::Topic(name) => format!("topic:{name}"),
            To::Backend(name) => format!("backend:{name}"),
            To::Reply(_) => "reply".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{SessionId, TopicName, UserId};

    fn send(items: &[&str]) -> Result<SendPatterns, String> {
        items.iter().map(|item| (*item).to_owned()).collect::<Vec<_>>().try_into()
    }

    #[test]
    fn an_item_is_a_whole_name_or_a_prefix() {
        let patterns: Patterns = serde_json::from_str(r#"["news", "room/*"]"#).unwrap();
        for (name, allowed) in
            [("news", true), ("news2", false), ("room/1", true), ("room", false), ("*", false), ("", false)]
        {
            assert_eq!(patterns.allow(name), allowed, "{name}");
        }
        let all: Patterns = serde_json::from_str(r#"["*"]"#).unwrap();
        assert!(all.allow("anything"));
        assert!(!serde_json::from_str::<Patterns>("[]").unwrap().allow(""));
    }

    #[test]
    fn an_item_allows_one_kind_of_address() {
        let patterns = send(&["user:ann", "topic:room/*"]).unwrap();
        let user = |name| To::User(UserId::new(name).unwrap());
        let topic = |name| To::Topic(TopicName::new(name).unwrap());
        let session = |name| To::Session(SessionId::new(name).unwrap());
        assert!(patterns.allow(&user("ann")) && !patterns.allow(&user("bob")));
        assert!(patterns.allow(&topic("room/1")) && !patterns.allow(&topic("ann")));
        assert!(!patterns.allow(&session("ann")));
        assert!(send(&["*"]).unwrap().allow(&session("x")));
        assert!(!send(&[]).unwrap().allow(&session("x")));
        for wrong in ["ann", "users:ann", "", "*x", ":"] {
            assert!(send(&[wrong]).unwrap_err().contains("begin with"), "{wrong}");
        }
    }

    #[test]
    fn a_peer_must_be_allowed_as_a_session_and_as_a_user() {
        let peer = To::Peer(SessionId::new("ann").unwrap());
        assert!(send(&["session:ann", "user:a*"]).unwrap().allow(&peer));
        assert!(!send(&["session:ann"]).unwrap().allow(&peer));
        assert!(!send(&["user:ann"]).unwrap().allow(&peer));
        assert_eq!(SendPatterns::item(&peer), "session:ann");
    }
}

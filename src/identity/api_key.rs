//! API keys of backends, from a file or the environment.

use std::path::PathBuf;
use std::sync::Arc;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};
use serde::Deserialize;

use crate::config::{Access, Secret};
use crate::grant::{Backend, Patterns, SendPatterns};
use crate::message::{BackendName, SenderName, taken_name};
use crate::reload::{Current, Loaded, SetupError, read_text_file, watch_files};

/// Shortest key, in bytes. Shorter keys can be guessed.
const MIN_KEY: usize = 32;

/// The known API keys, each with its backend.
#[derive(Debug, Default)]
pub(super) struct ApiKeys(Vec<Arc<Backend>>);

/// The format of the file of API keys.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyFile {
    #[serde(default)]
    key: Vec<ApiKeyEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ApiKeyEntry {
    name: String,
    key: String,
    from: Option<String>,
    send: Option<SendPatterns>,
    topics: Option<Patterns>,
    presence: Option<Patterns>,
    #[serde(default = "yes")]
    sessions: bool,
    #[serde(default)]
    mailbox: bool,
    #[serde(default)]
    ops: bool,
}

fn yes() -> bool {
    true
}

fn hash(key: &str) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, key.as_bytes()).as_ref());
    hash
}

impl ApiKeys {
    /// Reads the keys and watches their file.
    pub(super) fn watch(access: &Access) -> Result<Current<Self>, SetupError> {
        let from_env = access.secrets.api_keys.clone();
        watch_files(
            "the API keys",
            access.api_key_file.iter().cloned().collect(),
            move |paths: &[PathBuf]| {
                let (mut all, mut emptied) = (Self::default(), None);
                if let Some(Secret(keys)) = &from_env {
                    all.read_list(keys).map_err(|reason| SetupError(format!("X0_MSG_API_KEYS: {reason}")))?;
                }
                for path in paths {
                    let invalid =
                        |reason: String| SetupError(format!("--api-key-file {}: {reason}", path.display()));
                    let text = read_text_file(path).map_err(|error| invalid(error.to_string()))?;
                    let before = all.0.len();
                    all.read_file(&text).map_err(invalid)?;
                    if all.0.len() == before {
                        emptied = Some(invalid("holds no [[key]]".to_owned()));
                    }
                }
                Ok(match emptied {
                    Some(error) => Loaded::Emptied(all, error),
                    None => Loaded::Complete(all),
                })
            },
        )
    }

    fn read_list(&mut self, keys: &str) -> Result<(), String> {
        for item in
            keys.split(|char: char| char == ',' || char.is_whitespace()).filter(|item| !item.is_empty())
        {
            let (name, key) = item.split_once(':').ok_or("a key is written as name:key")?;
            let (name, key) = (name.to_owned(), key.to_owned());
            self.add(ApiKeyEntry {
                name,
                key,
                from: None,
                send: None,
                topics: None,
                presence: None,
                sessions: true,
                mailbox: false,
                ops: false,
            })?;
        }
        Ok(())
    }

    fn read_file(&mut self, text: &str) -> Result<(), String> {
        // The parser quotes the file, which holds keys. The message therefore names only the line.
        let file: KeyFile = toml::from_str(text).map_err(|error| {
            let before = error.span().map_or("", |span| &text[..span.start]);
            let line = before.matches('\n').count() + 1;
            format!(
                "line {line} is invalid: each [[key]] has strings `name` and `key`, and may have a string \
                 `from`, a list `send` of addresses like topic:news or user:*, lists `topics` and `presence`, and \
                 `sessions`, `mailbox` and `ops`, true or false"
            )
        })?;
        file.key.into_iter().try_for_each(|key| self.add(key))
    }

    fn add(&mut self, key: ApiKeyEntry) -> Result<(), String> {
        let ApiKeyEntry { name, key, from, send, topics, presence, sessions, mailbox, ops } = key;
        // As the key that a request shows, see `Identity::check`.
        let key = key.trim();
        // The message names the number, not the name: if name and key are swapped, the name is secret.
        let number = self.0.len() + 1;
        if name.is_empty() || name.chars().any(char::is_control) {
            return Err(format!("key number {number} needs a `name` without control characters"));
        }
        if key.len() < MIN_KEY {
            return Err(format!(
                "key number {number} has {} characters; at least {MIN_KEY} are needed (`openssl rand -hex 32` makes one)",
                key.len()
            ));
        }
        let from = from.map(|from| {
            SenderName::new(&from).map_err(|reason| format!("`from` of key number {number} {reason}"))
        });
        let mailbox = mailbox.then(|| {
            taken_name(&name, BackendName::new)
                .map_err(|reason| format!("`name` of key number {number} {reason}, since it has a mailbox"))
        });
        let mailbox = mailbox.transpose()?;
        // Receivers answer to the mailbox by its name.
        let from = from.transpose()?.or_else(|| mailbox.as_ref().map(SenderName::from));
        let (name, key_digest) = (name.into(), hash(key));
        self.0.push(Arc::new(Backend {
            name,
            from,
            send,
            topics,
            presence,
            sessions,
            ops,
            mailbox,
            key_digest,
        }));
        Ok(())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The backend of this key. The comparison takes the same time for every key, right or wrong.
    pub(super) fn find(&self, key: &str) -> Option<Arc<Backend>> {
        if self.is_empty() {
            return None;
        }
        let hash = hash(key);
        let mut found = None;
        for backend in &self.0 {
            if verify_slices_are_equal(&backend.key_digest, &hash).is_ok() {
                found = Some(backend);
            }
        }
        found.cloned()
    }

    /// Whether the key of this backend is still known, with the same mailbox.
    pub(super) fn contains(&self, backend: &Backend) -> bool {
        let is_same =
            |known: &Backend| known.key_digest == backend.key_digest && known.mailbox == backend.mailbox;
        self.0.iter().any(|known| is_same(known))
    }

    /// Whether a key gives this backend a mailbox.
    pub(super) fn has_mailbox(&self, name: &BackendName) -> bool {
        self.0.iter().any(|known| known.mailbox.as_ref() == Some(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "0123456789abcdef0123456789abcdef";

    #[test]
    fn only_a_whole_key_is_found() {
        let mut all = ApiKeys::default();
        all.read_list(&format!("shop:{KEY}, other:{KEY}2")).unwrap();
        assert_eq!(&*all.find(KEY).unwrap().name, "shop");
        assert_eq!(&*all.find(&format!("{KEY}2")).unwrap().name, "other");
        for wrong in ["", &KEY[1..], &format!("{KEY}3"), "shop"] {
            assert!(all.find(wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn white_space_around_a_key_is_ignored() {
        let mut all = ApiKeys::default();
        all.read_list(&format!("\tshop:{KEY}\r\n")).unwrap();
        all.read_file(&format!("[[key]]\nname = \"bank\"\nkey = \" {KEY}2\\n\"")).unwrap();
        assert_eq!(&*all.find(KEY).unwrap().name, "shop");
        assert_eq!(&*all.find(&format!("{KEY}2")).unwrap().name, "bank");
        let blank = format!("[[key]]\nname = \"a\"\nkey = \"x{}\"", " ".repeat(MIN_KEY));
        assert!(all.read_file(&blank).unwrap_err().contains("has 1 characters"));
    }

    #[test]
    fn a_mailbox_belongs_to_a_name_and_not_to_a_key() {
        let mut all = ApiKeys::default();
        let key = |name: &str, key: &str, more: &str| {
            format!("[[key]]\nname = \"{name}\"\nkey = \"{key}\"\n{more}\n")
        };
        let (old, new, other) = (format!("{KEY}1"), format!("{KEY}2"), format!("{KEY}3"));
        let text = key("shop", &old, "mailbox = true")
            + &key("shop", &new, "mailbox = true\nfrom = \"the shop\"")
            + &key("bank", &other, "");
        all.read_file(&text).unwrap();
        let name = |name| BackendName::new(name).unwrap();
        assert!(all.has_mailbox(&name("shop")) && !all.has_mailbox(&name("bank")));
        let [old, new, other] = [old, new, other].map(|key| all.find(&key).unwrap());
        assert_eq!((&old.mailbox, &old.mailbox), (&Some(name("shop")), &new.mailbox));
        let from = |backend: &Backend| backend.from.as_ref().map(|from| from.as_str().to_owned());
        assert_eq!(from(&old).as_deref(), Some("shop"), "so that receivers can answer");
        assert_eq!((from(&new).as_deref(), from(&other)), (Some("the shop"), None));
        // A key that has lost its mailbox, or has another one, is not the same any more.
        let mut changed = ApiKeys::default();
        changed.read_file(&text.replace("mailbox = true\nfrom", "from")).unwrap();
        assert!(changed.contains(&old) && !changed.contains(&new) && changed.contains(&other));
        for name in ["h-BwcHBwcHBwcHBwcHBwcHBw".to_owned(), "x".repeat(257)] {
            let reason = ApiKeys::default().read_file(&key(&name, KEY, "mailbox = true")).unwrap_err();
            assert!(reason.contains("`name` of key number 1") && reason.contains("mailbox"), "{reason}");
            ApiKeys::default().read_file(&key(&name, KEY, "")).unwrap();
        }
    }

    #[test]
    fn errors_name_the_problem_and_never_the_key() {
        let read = |text: &str| ApiKeys::default().read_file(text);
        read(&format!("[[key]]\nname = \"a\"\nkey = \"{KEY}\"\nsend = [\"topic:*\"]\nsessions = false"))
            .unwrap();
        for (text, names) in [
            ("[[key]]\nname = \"a\"\nkey = \"hunter2\"".to_owned(), "at least 32"),
            (format!("[[key]]\nkey = \"{KEY}\""), "name"),
            (format!("[[key]]\nname = \"\"\nkey = \"{KEY}\""), "name"),
            (format!("[[key]]\nname = \"a\"\nkey = \"{KEY}\"\nsent = []"), "line 4"),
            (format!("[[key]]\nname = \"a\"\nkey = \"{KEY}\"\nsend = [\"x\"]"), "line 4"),
            (format!("key = \"{KEY}\""), "line 1"),
            (format!("[[key]]\nname = \"a\"\nkey = \"{KEY}\"\nsessions = \"{KEY}\""), "line 4"),
            (format!("[[key]]\nname = \"{KEY}\"\nkey = \"a\""), "number 1"),
            (format!("[[key]]\nname = \"a\"\nkey = \"{KEY}"), "line 3"),
        ] {
            let reason = read(&text).unwrap_err();
            assert!(reason.contains(names), "{reason}");
            assert!(!reason.contains(KEY) && !reason.contains("hunter2"), "{reason}");
        }
        assert!(ApiKeys::default().read_list("x").unwrap_err().contains("name:key"));
        let swapped = ApiKeys::default().read_list(&format!("{KEY}:shop")).unwrap_err();
        assert!(swapped.contains("number 1") && !swapped.contains(KEY), "{swapped}");
    }
}

//! How much waits to be stored, of all and of each author, and whether there is room for more.

use std::collections::HashMap;

use crate::budget::SMALL;
use crate::engine::{Append, EngineError, QueueBounds, Share, Usage};
use crate::message::SenderName;
use crate::sync::shrink;

/// What waits to be stored. Invariant: the authors' parts are sums of what waits, and an author without any has none.
#[derive(Debug, Default)]
pub(super) struct Load {
    used: Usage,
    authors: HashMap<SenderName, Usage>,
}

fn size(append: &Append) -> usize {
    append.message.payload.get().len()
}

impl Load {
    /// What waits of all authors together.
    pub(super) fn used(&self) -> Usage {
        self.used
    }

    /// Adds an append if there is room for it. An author has a share, and a tenth is kept for backends; a quarter of the bytes
    /// is for small messages.
    ///
    /// # Errors
    /// [`EngineError::Overloaded`], [`EngineError::QuotaExceeded`].
    pub(super) fn add(&mut self, append: &Append, bounds: QueueBounds) -> Result<(), EngineError> {
        let (used, size) = (self.used, size(append));
        let whole = Usage { messages: bounds.messages, bytes: bounds.bytes };
        let mut most = whole;
        if let Some(author) = &append.payer {
            let own = self.authors.get(author).copied().unwrap_or_default();
            Share::Queue.check(whole, used, own, Usage { messages: 1, bytes: size })?;
            most = whole.for_authors();
        }
        if size > SMALL {
            most.bytes = most.bytes / 4 * 3;
        }
        if used.messages >= most.messages || used.bytes + size > most.bytes {
            let bounds = QueueBounds { messages: most.messages, bytes: most.bytes };
            return Err(EngineError::Overloaded { messages: used.messages, bytes: used.bytes, bounds });
        }
        let own = append.payer.as_ref().map(|author| self.authors.entry(author.clone()).or_default());
        for usage in [Some(&mut self.used), own].into_iter().flatten() {
            usage.messages += 1;
            usage.bytes += size;
        }
        Ok(())
    }

    /// Removes an append that was added.
    pub(super) fn remove(&mut self, append: &Append) {
        let size = size(append);
        self.used.messages -= 1;
        self.used.bytes -= size;
        let Some(author) = &append.payer else { return };
        let Some(own) = self.authors.get_mut(author) else { return };
        own.messages -= 1;
        own.bytes -= size;
        if own.messages == 0 {
            self.authors.remove(author);
            shrink(&mut self.authors);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::value::RawValue;

    use super::*;
    use crate::engine::OverShare;
    use crate::message::{Address, Author, Kind, Message, TopicName};

    fn append(author: Option<&str>, payload: &str) -> Append {
        let payload = RawValue::from_string(payload.to_owned()).unwrap();
        let message = Message { kind: Kind::Message, from: None, payload, reference: None, ts: 0 };
        let address = Address::Topic(TopicName::new("t").unwrap());
        let payer = author.map(|author| SenderName::new(author).unwrap());
        Append { payer, ..Append::new(address, message, Author::Anonymous) }
    }

    fn fill(load: &mut Load, author: Option<&str>, bounds: QueueBounds) -> (usize, EngineError) {
        for count in 0.. {
            if let Err(refused) = load.add(&append(author, "1"), bounds) {
                return (count, refused);
            }
        }
        unreachable!("something is bounded")
    }

    #[test]
    fn what_waits_is_bounded_in_messages_and_bytes() {
        let (mut load, bounds) = (Load::default(), QueueBounds { messages: 2, bytes: 5 });
        load.add(&append(None, "123"), bounds).unwrap();
        let refused = load.add(&append(None, "123"), bounds).unwrap_err();
        assert_eq!(refused, EngineError::Overloaded { messages: 1, bytes: 3, bounds });
        load.add(&append(None, "12"), bounds).unwrap();
        assert!(load.add(&append(None, "1"), bounds).is_err());
        load.remove(&append(None, "123"));
        load.add(&append(None, "123"), bounds).unwrap();
    }

    #[test]
    fn an_author_takes_its_share_and_others_go_on_up_to_the_reserve() {
        let (mut load, bounds) = (Load::default(), QueueBounds { messages: 40, bytes: 1 << 20 });
        let is_share = |refused: &EngineError| {
            matches!(refused, EngineError::QuotaExceeded(OverShare { share: Share::Queue, .. }))
        };
        let (count, refused) = fill(&mut load, Some("ann"), bounds);
        assert!(count == 20 && is_share(&refused), "{count} {refused}");
        let (count, refused) = fill(&mut load, Some("bob"), bounds);
        assert!(count == 5 && is_share(&refused), "{count} {refused}");
        for author in ["cid", "dan", "eve"] {
            fill(&mut load, Some(author), bounds);
        }
        let (count, refused) = fill(&mut load, None, bounds);
        assert!(count == 4 && matches!(refused, EngineError::Overloaded { messages: 40, .. }), "{refused}");
        for _ in 0..20 {
            load.remove(&append(Some("ann"), "1"));
        }
        assert!(!load.authors.contains_key(&SenderName::new("ann").unwrap()));
        load.add(&append(Some("ann"), "1"), bounds).unwrap();
    }
}

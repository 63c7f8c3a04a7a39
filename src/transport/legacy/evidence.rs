//! Evidence of whether an answer reached its page.

use std::sync::Arc;

use crate::link::Link;
use crate::message::Seq;
use crate::transport::legacy::source::RequestSource;

/// An answer with messages whose receipt is not known.
#[derive(Debug)]
pub(super) struct UnconfirmedAnswer {
    /// The last seq of the answer.
    pub(super) through: Seq,
    /// The connection that carried it.
    link: LinkEvidence,
    /// The `a__` of the poll that it answered.
    request_id: Option<Box<str>>,
    /// Whether a live page uses the connection again.
    reusable: bool,
}

#[derive(Debug)]
enum LinkEvidence {
    /// The connection can still be asked.
    Live(Arc<Link>),
    /// What the connection said when it was dropped.
    Settled { id: u64, arrived: bool },
}

/// What is known of an answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Delivery {
    Arrived,
    Lost,
    /// Not acknowledged yet, on a connection that is not broken.
    Unknown,
}

impl UnconfirmedAnswer {
    /// Notes an answer, before it is written.
    pub(super) fn new(through: Seq, source: &RequestSource) -> Self {
        source.link.watch();
        Self {
            through,
            link: LinkEvidence::Live(Arc::clone(&source.link)),
            request_id: source.request_id.as_deref().map(Box::from),
            reusable: source.reusable,
        }
    }

    /// Whether the answer went out on this connection.
    pub(super) fn is_on(&self, link: &Link) -> bool {
        match &self.link {
            LinkEvidence::Live(known) => known.id() == link.id(),
            LinkEvidence::Settled { id, .. } => *id == link.id(),
        }
    }

    /// Whether a request is a repeat of the poll that was answered.
    pub(super) fn is_repeated_by(&self, source: &RequestSource) -> bool {
        source.request_id.is_some() && source.request_id.as_deref() == self.request_id.as_deref()
    }

    /// Whether a request proves that the answer was read: a browser uses a connection again only when it has read the answer
    /// before.
    pub(super) fn is_confirmed_by(&self, source: &RequestSource) -> bool {
        source.sequential && self.is_on(&source.link)
    }

    /// Whether the connection says that the answer did not reach its page.
    pub(super) fn is_lost(&self) -> bool {
        match &self.link {
            // TCP may have taken an answer that its page did not live to read. A browser closes the connection of such
            // a page. It keeps the connection of a live page, which polls again on it.
            LinkEvidence::Live(link) => link.is_broken() || self.reusable && link.peer_closed(),
            LinkEvidence::Settled { arrived, .. } => !arrived,
        }
    }

    /// What the next poll, from `source`, and the connection say about the answer.
    pub(super) fn delivery(&self, source: &RequestSource) -> Delivery {
        if self.is_confirmed_by(source) {
            return Delivery::Arrived;
        }
        // A browser repeats a request only if it got no answer.
        match self.is_repeated_by(source) {
            true => Delivery::Lost,
            false => self.delivery_so_far(),
        }
    }

    /// What the connection alone says about the answer.
    pub(super) fn delivery_so_far(&self) -> Delivery {
        match &self.link {
            _ if self.is_lost() => Delivery::Lost,
            LinkEvidence::Live(link) if !link.all_bytes_acked() => Delivery::Unknown,
            LinkEvidence::Live(_) | LinkEvidence::Settled { .. } => Delivery::Arrived,
        }
    }

    /// Asks the connection for the last time, and drops it: its descriptor is not kept for minutes.
    pub(super) fn settle_link(&mut self) {
        if let LinkEvidence::Live(link) = &self.link {
            let (id, arrived) = (link.id(), self.delivery_so_far() == Delivery::Arrived);
            self.link = LinkEvidence::Settled { id, arrived };
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::link::MonitoredStream;
    use crate::link::testing::tcp_pair;

    fn source(link: &Arc<Link>, request_id: &str) -> RequestSource {
        RequestSource {
            address: None,
            link: Arc::clone(link),
            request_id: Some(request_id.to_owned()),
            reusable: true,
            sequential: true,
        }
    }

    /// An answer that was written to a connection on which it cannot be told whether it arrived.
    fn on_unwatched_link() -> (UnconfirmedAnswer, Arc<Link>) {
        let link = Link::new();
        (UnconfirmedAnswer::new(Seq(7), &source(&link, "1")), link)
    }

    #[test]
    fn the_next_request_on_the_same_connection_proves_arrival() {
        let (answer, link) = on_unwatched_link();
        assert_eq!(answer.delivery(&source(&link, "2")), Delivery::Arrived);
        let concurrent = RequestSource { sequential: false, ..source(&link, "2") };
        assert_eq!(answer.delivery(&concurrent), Delivery::Unknown);
    }

    #[test]
    fn a_repeat_of_the_request_proves_loss() {
        let (answer, _) = on_unwatched_link();
        assert_eq!(answer.delivery(&source(&Link::new(), "1")), Delivery::Lost);
        assert_eq!(answer.delivery(&source(&Link::new(), "2")), Delivery::Unknown);
        let unnamed = RequestSource { request_id: None, ..source(&Link::new(), "1") };
        assert_eq!(answer.delivery(&unnamed), Delivery::Unknown);
    }

    #[tokio::test]
    async fn the_acknowledgement_of_tcp_proves_arrival() {
        let (mut server, link, mut client) = tcp_pair().await;
        let answer = UnconfirmedAnswer::new(Seq(7), &source(&link, "1"));
        server.write_all(b"answer").await.unwrap();
        let mut read = [0; 6];
        client.read_exact(&mut read).await.unwrap();
        while answer.delivery(&source(&Link::new(), "2")) != Delivery::Arrived {
            tokio::task::yield_now().await;
        }
        assert!(!answer.is_lost());
    }

    #[tokio::test]
    async fn a_page_that_closes_its_reusable_connection_did_not_read_the_answer() {
        for (reusable, lost) in [(true, true), (false, false)] {
            let (ours, theirs) = tokio::io::duplex(64);
            let link = Link::new();
            let mut stream = MonitoredStream::opaque(ours, Arc::clone(&link));
            let source = RequestSource { reusable, ..source(&link, "1") };
            let answer = UnconfirmedAnswer::new(Seq(7), &source);
            drop(theirs);
            assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);
            assert_eq!(answer.is_lost(), lost);
        }
    }

    #[tokio::test]
    async fn a_settled_answer_remembers_what_its_connection_said() {
        let (mut server, link, mut client) = tcp_pair().await;
        let mut arrived = UnconfirmedAnswer::new(Seq(7), &source(&link, "1"));
        server.write_all(b"answer").await.unwrap();
        client.read_exact(&mut [0; 6]).await.unwrap();
        while !link.all_bytes_acked() {
            tokio::task::yield_now().await;
        }
        arrived.settle_link();
        drop(server);
        assert!(arrived.is_on(&link) && !arrived.is_lost());
        assert_eq!(arrived.delivery(&source(&Link::new(), "2")), Delivery::Arrived);
        let (mut unknown, _) = on_unwatched_link();
        unknown.settle_link();
        assert_eq!(unknown.delivery(&source(&Link::new(), "2")), Delivery::Lost);
    }
}

//! Each net of the feed alone finds what NATS did not bring. Without nets nobody finds it.

use async_nats::Client;

use super::server::NatsServer;
use super::*;
use crate::engine::nats::Nats;
use crate::engine::nats::nets::Net;

/// No reader waits longer for a stored message, though nothing is sent after it.
const SOON: Duration = Duration::from_secs(10);

/// Every event comes earlier.
const EVENT: Duration = Duration::from_secs(60);

/// A volatile message that does not come in this time is lost.
const TRIED: Duration = Duration::from_millis(100);

/// More messages than wait in a subscription.
const FLOOD: usize = 11_000;

/// A node with one reader.
struct Reading {
    node: Nats,
    engine: Engine,
    mailbox: Address,
    reader: Subscriber,
}

impl Reading {
    /// Without nets, and with nothing that they still do.
    async fn without_nets(server: &NatsServer) -> Self {
        let mailbox_bounds = Bounds { messages: 100, ..bounds() };
        let (node, hubs) =
            server.node(Settings { mailbox: mailbox_bounds, ..settings(Clock::manual()) }, SLOTS);
        let (engine, mailbox) = (Engine::from(node.clone()), mailbox("A"));
        let reader = reader(&engine, &hubs, &mailbox, Seq::START);
        let mut reading = Self { node, engine, mailbox, reader };
        reading.put("live").await;
        reading.expect("live").await;
        reading.node.nets().only(&[]);
        // The comparisons come one after the other.
        reading.passes(Net::Compared, async {}).await;
        reading
    }

    async fn put(&self, payload: &str) {
        while self.engine.health().is_unreachable {
            tokio::task::yield_now().await;
        }
        put(&self.engine, &self.mailbox, &format!("{payload:?}")).await;
    }

    /// The next stored message is this one.
    async fn expect(&mut self, payload: &str) {
        let stored = async {
            loop {
                let item = self.reader.next().await.expect("not ended");
                if item.seq().is_some() {
                    return item;
                }
            }
        };
        let found = timeout(SOON, stored).await.unwrap_or_else(|_| panic!("{payload} does not come"));
        assert_eq!(text(&found), format!("{payload:?}"));
    }

    /// Waits until there is room in the subscription again: until a volatile message comes.
    async fn has_room(&mut self) {
        let comes = async {
            loop {
                publish_volatile(&self.engine, &self.mailbox, "0");
                if timeout(TRIED, self.reader.next()).await.is_ok() {
                    return;
                }
            }
        };
        timeout(EVENT, comes).await.expect("there is room");
    }

    /// Stores a message that NATS does not bring.
    async fn put_lost(&self, payload: &str) {
        let nets = self.node.nets();
        nets.lose(true);
        futures::join!(nets.lost_again(), self.put(payload));
        nets.lose(false);
    }

    /// Waits until an event has made this net look, or would have.
    async fn passes(&self, net: Net, event: impl Future<Output = ()>) {
        let passing = async { futures::join!(self.node.nets().asked_again(net), event) };
        timeout(EVENT, passing).await.unwrap_or_else(|_| panic!("{net:?} is not asked"));
    }
}

/// A message that was lost before an event is found after it by this net, and by nothing else.
async fn finds(server: &NatsServer, net: Net, event: impl AsyncFn(&Nats)) {
    let mut reading = Reading::without_nets(server).await;
    reading.put_lost("lost").await;
    reading.passes(net, event(&reading.node)).await;
    reading.put("not lost").await;
    reading.expect("not lost").await;
    reading.node.nets().only(&[net]);
    reading.put_lost("found").await;
    event(&reading.node).await;
    reading.expect("found").await;
}

async fn connect(server: &NatsServer) -> Client {
    async_nats::connect(server.options().url).await.unwrap()
}

#[cfg(test)]
mod a_message_names_the_one_before_it {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn nats() {
        let server = NatsServer::start("");
        let mut reading = Reading::without_nets(&server).await;
        reading.put_lost("lost").await;
        reading.put("not lost").await;
        reading.expect("not lost").await;
        reading.node.nets().only(&[Net::Previous]);
        for payload in ["found", "found too"] {
            reading.put_lost(payload).await;
        }
        reading.put("last").await;
        for payload in ["found", "found too", "last"] {
            reading.expect(payload).await;
        }
    }
}

mod what_was_missed_is_found_by_comparison {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn nats() {
        finds(&NatsServer::start(""), Net::Compared, async |_| {}).await;
    }
}

mod what_was_missed_is_found_after_a_new_connection {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn nats() {
        finds(&NatsServer::start(""), Net::Connected, async |node| node.reconnect().await).await;
    }
}

mod what_was_missed_is_found_after_an_election {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn nats() {
        let servers = NatsServer::cluster();
        let (client, prefix) = (connect(&servers[1]).await, servers[0].options().prefix);
        let step_down = async |_: &Nats| {
            let request = format!("$JS.API.STREAM.LEADER.STEPDOWN.{prefix}_M0");
            let answer = client.request(request, "".into()).await.unwrap();
            assert!(String::from_utf8_lossy(&answer.payload).contains("\"success\":true"), "{answer:?}");
        };
        finds(&servers[0], Net::Leader, step_down).await;
    }
}

mod what_was_missed_is_found_after_an_overflow {
    use super::*;

    /// Fills the subscription, so that it has no room for what is stored next.
    async fn flood(client: &Client, node: &Nats, mailbox: &Address) {
        node.nets().hold(true);
        for _ in 0..FLOOD {
            client.publish(node.live_subject(mailbox), "".into()).await.unwrap();
        }
        client.flush().await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn nats() {
        let server = NatsServer::start("");
        let client = connect(&server).await;
        let mut reading = Reading::without_nets(&server).await;
        let overflow = async {
            flood(&client, &reading.node, &reading.mailbox).await;
            reading.put("lost").await;
        };
        reading.passes(Net::Overflow, overflow).await;
        reading.node.nets().hold(false);
        reading.has_room().await;
        reading.put("not lost").await;
        reading.expect("not lost").await;
        reading.node.nets().only(&[Net::Overflow]);
        flood(&client, &reading.node, &reading.mailbox).await;
        reading.put("found").await;
        reading.expect("found").await;
    }
}

//! What the broker holds at the time of the scrape.

use std::fmt::Result;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::timeout;

use crate::edge::Gateway;
use crate::engine::{Contents, Oldest};
use crate::hub::Connections;
use crate::metrics;
use crate::ops::metrics::page::{Label, Page};
use crate::protocol::Transport;

/// How long the oldest message is looked for. A disk that answers later is told by other metrics.
const OLDEST_TIMEOUT: Duration = Duration::from_secs(1);

/// Writes all of it. Called on a thread that may wait.
pub(super) fn encode(page: &mut Page<'_>, gateway: &Gateway) -> Result {
    clients(page, gateway)?;
    stored(page, gateway, &gateway.broker.contents())?;
    health(page, gateway)
}

fn clients(page: &mut Page<'_>, gateway: &Gateway) -> Result {
    page.gauge("x0_msg_connections", "TCP connections of clients", gateway.connections.len() as u64)?;
    let (mailboxes, topics) = gateway.broker.readers();
    let readers = by_transport("mailbox", mailboxes).into_iter().chain(by_transport("topic", topics));
    page.gauges(
        "x0_msg_subscribers",
        "Readers of mailboxes and of topics; who polls is one until 15 s after the last poll",
        readers,
    )?;
    let budget = &gateway.budget;
    page.gauge(
        "x0_msg_memory_budget_used_bytes",
        "Bytes that are received or wait to be written",
        budget.used() as u64,
    )?;
    page.gauge(
        "x0_msg_memory_budget_bytes",
        "The most bytes of that, see --memory-budget",
        budget.bytes() as u64,
    )
}

fn by_transport(
    kind: &'static str,
    connections: Connections,
) -> [([Label<'static>; 2], u64); Transport::ALL.len()] {
    let Connections { websocket, sse, poll, legacy } = connections;
    let counts = [websocket, sse, poll, legacy];
    std::array::from_fn(|at| ([("kind", kind), ("transport", Transport::ALL[at].label())], counts[at] as u64))
}

fn stored(page: &mut Page<'_>, gateway: &Gateway, contents: &Contents) -> Result {
    let Contents { mailboxes, topics, unread, history, bytes, most_bytes, oldest, queued, queued_bytes } =
        contents;
    page.gauge(
        "x0_msg_mailboxes",
        "Mailboxes with messages; on NATS this and all that is stored is counted for all nodes, some seconds ago",
        *mailboxes as u64,
    )?;
    page.gauge("x0_msg_topics", "Topics with messages in their history", *topics as u64)?;
    let messages = [([("kind", "mailbox")], *unread as u64), ([("kind", "topic")], *history as u64)];
    page.gauges(
        "x0_msg_stored_messages",
        "Messages that are stored: unread ones, and those in histories; on NATS acknowledged ones too, until they are deleted",
        messages,
    )?;
    page.gauge(
        "x0_msg_stored_bytes",
        "Bytes of all stored messages with their envelopes; on NATS those of one replica",
        *bytes as u64,
    )?;
    page.gauge(
        "x0_msg_store_limit_bytes",
        "The most bytes of stored messages, see --store-limit",
        *most_bytes as u64,
    )?;
    if *oldest != Oldest::Unknown {
        let age = age(gateway, oldest);
        page.gauge(
            "x0_msg_oldest_unread_seconds",
            "Age of the oldest message that nobody has acknowledged; 0 if there is none. Not told on NATS",
            age.as_secs_f64(),
        )?;
    }
    page.gauge(
        "x0_msg_append_queue_messages",
        "Messages of this node that wait for their commit",
        *queued as u64,
    )?;
    page.gauge(
        "x0_msg_append_queue_bytes",
        "Bytes of the messages that wait for their commit",
        *queued_bytes as u64,
    )
}

/// How old this message is; 0 if there is none, or its time cannot be read now.
fn age(gateway: &Gateway, oldest: &Oldest) -> Duration {
    let Oldest::Is(address, seq) = oldest else { return Duration::ZERO };
    let reading = timeout(OLDEST_TIMEOUT, gateway.broker.accepted_at(address, *seq));
    let since = Handle::current().block_on(reading).ok().flatten();
    Duration::from_millis(since.map_or(0, |since| gateway.broker.now().saturating_sub(since)))
}

fn health(page: &mut Page<'_>, gateway: &Gateway) -> Result {
    let health = gateway.broker.health();
    page.gauge(
        "x0_msg_failing",
        "How many things do not work now; /healthz says which",
        health.failing.len() as u64,
    )?;
    let ready = !gateway.shutdown.is_cancelled() && !health.is_unreachable;
    page.gauge(
        "x0_msg_ready",
        "Whether new work should be sent here: 1 or 0, as /readyz says",
        u64::from(ready),
    )?;
    let end = metrics::CERTIFICATE_END.load(Ordering::Relaxed);
    if end != 0 {
        page.gauge(
            "x0_msg_certificate_end_timestamp_seconds",
            "Unix time at which the certificate of --tls-cert ends",
            end,
        )?;
    }
    #[cfg(feature = "nats")]
    if let Some(nats) = gateway.broker.nats() {
        page.gauge("x0_msg_nats_up", "Whether there is a connection to NATS: 1 or 0", u64::from(nats.is_up))?;
        page.counter("x0_msg_nats_connects", "How often the connection to NATS was made", nats.connects)?;
        page.counter(
            "x0_msg_nats_unanswered",
            "How often appends to an address were not answered by NATS in time, and are sent again",
            metrics::NATS_UNANSWERED.get(),
        )?;
        page.counter("x0_msg_nats_received_bytes", "Bytes that came from NATS", nats.received)?;
        page.counter("x0_msg_nats_sent_bytes", "Bytes that were sent to NATS", nats.sent)?;
    }
    Ok(())
}

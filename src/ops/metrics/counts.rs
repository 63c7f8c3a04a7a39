//! What was counted since the start of the process.

use std::fmt::Result;

use crate::log;
use crate::message::GapReason;
use crate::metrics::{self, Limit, Rejected, SentBy};
use crate::ops::metrics::page::Page;
use crate::protocol::{Code, Transport};

/// Writes all of it.
pub(super) fn encode(page: &mut Page<'_>) -> Result {
    messages(page)?;
    refusals(page)?;
    readers(page)?;
    commits(page)?;
    let [fetched, failed] = [0, 1].map(|at: usize| metrics::JWKS_FETCHES[at].get());
    page.counters(
        "x0_msg_jwks_fetches",
        "Fetches of the JWK set",
        [([("result", "ok")], fetched), ([("result", "failed")], failed)],
    )?;
    page.counter("x0_msg_log_lines_lost", "Lines of the log that could not be written", log::lost_lines())
}

fn messages(page: &mut Page<'_>) -> Result {
    let accepted = metrics::accepted().map(|(by, count)| ([("transport", by.label())], count));
    page.counters(
        "x0_msg_messages_accepted",
        "Messages that were accepted: stored, or volatile and published",
        accepted,
    )?;
    let delivered =
        metrics::delivered().map(|(transport, count)| ([("transport", transport.label())], count));
    page.counters(
        "x0_msg_messages_delivered",
        "Messages that were given to connections of readers, once for each reader and each time; receipts and presence too",
        delivered,
    )?;
    page.counter(
        "x0_msg_messages_acknowledged",
        "Messages that left their mailboxes since they were acknowledged; on NATS counted by the node that deletes them, when the \
         time is over in which their ids count",
        metrics::ACKNOWLEDGED.get(),
    )?;
    page.counter(
        "x0_msg_messages_expired",
        "Messages that were removed since their time to live was over; on NATS only those that a node deletes: with a receipt, or \
         to make room; NATS deletes the others",
        metrics::EXPIRED.get(),
    )?;
    page.histogram(
        "x0_msg_delivery_seconds",
        "From the publication of a message until it is written to its readers, or taken by their tasks to be written; at most one \
         message of 16 of an address is timed",
        metrics::delivery(),
    )
}

fn refusals(page: &mut Page<'_>) -> Result {
    let each = |count: fn(SentBy, Code) -> &'static metrics::Counter| {
        SentBy::ALL.into_iter().flat_map(move |by| {
            Code::ALL
                .into_iter()
                .map(move |code| ([("transport", by.label()), ("code", code.name())], count(by, code).get()))
        })
    };
    page.counters("x0_msg_messages_refused", "Messages that were refused", each(metrics::refused_sends))?;
    page.counters(
        "x0_msg_refusals",
        "Requests, frames and messages of arrays that were answered with an error, and polls of x0 pages that are held instead",
        each(metrics::refused),
    )?;
    let limits = Limit::ALL.map(|limit| ([("limit", limit.label())], metrics::limited(limit).get()));
    page.counters(
        "x0_msg_limit_refusals",
        "What each limit, and each share of an author, has refused",
        limits,
    )?;
    let rejected = Rejected::ALL.map(|why| ([("reason", why.label())], metrics::rejected(why).get()));
    page.counters(
        "x0_msg_credentials_rejected",
        "Tokens, API keys and session ids that were not accepted",
        rejected,
    )
}

fn readers(page: &mut Page<'_>) -> Result {
    let redelivered = [Transport::Poll, Transport::Legacy]
        .map(|poll| ([("transport", poll.label())], metrics::redelivered(poll).get()));
    page.counters(
        "x0_msg_redeliveries",
        "Answers to polls that are given again, since nothing showed that they arrived; with websocket and sse nobody knows: a new \
         connection does not say what the one before was sent",
        redelivered,
    )?;
    let gaps =
        GapReason::ALL.map(|reason| ([("reason", reason.label())], metrics::GAPS[reason as usize].get()));
    page.counters("x0_msg_gaps", "Holes that readers met: messages that do not come any more", gaps)?;
    page.counter(
        "x0_msg_reader_lags",
        "How often a reader was overtaken by what was published, and read the store again",
        metrics::LAGGED.get(),
    )?;
    let polls = [
        ([("transport", Transport::Poll.label())], metrics::WaitingPoll::<false>::count()),
        ([("transport", Transport::Legacy.label())], metrics::WaitingPoll::<true>::count()),
    ];
    page.gauges("x0_msg_waiting_polls", "Long-polls that wait for a message now", polls)
}

fn commits(page: &mut Page<'_>) -> Result {
    page.histogram(
        "x0_msg_append_commit_seconds",
        "From the acceptance of a message until its commit: on NATS until it confirms that; none at level memory",
        metrics::commit_wait(),
    )?;
    page.histogram(
        "x0_msg_commit_seconds",
        "What a commit of the store took; each stores a group of messages and deletions; none on NATS, as of the next ones",
        metrics::COMMIT.snapshot(),
    )?;
    page.histogram(
        "x0_msg_commit_sync_seconds",
        "The last step of a commit; at level fsync it waits for the disk",
        metrics::SYNC.snapshot(),
    )?;
    page.counter(
        "x0_msg_committed_messages",
        "Messages in all commits; divided by the number of commits, the size of a group",
        metrics::COMMITTED.get(),
    )?;
    page.counter("x0_msg_commit_failures", "Commits that failed", metrics::FAILED_COMMITS.get())
}

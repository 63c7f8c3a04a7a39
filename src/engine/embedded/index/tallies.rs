//! Who pays for the messages of a log.

use crate::engine::Usage;
use crate::engine::embedded::index::address_log::{AddressLog, LogEntry};
use crate::engine::embedded::index::payers::{PayerId, Tally};
use crate::engine::embedded::index::totals::Totals;
use crate::message::Address;

/// Whether a mailbox holds more than this.
pub(super) fn is_tallied(log: &AddressLog, tallied: Usage) -> bool {
    Usage { messages: log.entries().len(), bytes: log.bytes() }.exceeds(tallied)
}

/// A log has a new entry, for which room was reserved.
pub(super) fn charge(
    totals: &Totals,
    log: &mut AddressLog,
    address: &Address,
    entry: &LogEntry,
    tallied: Usage,
) {
    let (payer, bytes) = (entry.payer(), entry.bytes as usize);
    match (address, &mut log.tally) {
        (Address::Topic(_), None) if payer == PayerId::NONE => {}
        (Address::Topic(_), tally) => {
            if tally.get_or_insert_default().add(payer, bytes) {
                totals.enter_topic(payer);
            }
        }
        (Address::Session(_) | Address::Backend(_), Some(tally)) => _ = tally.add(payer, bytes),
        (Address::Session(_) | Address::Backend(_), None) => {
            if is_tallied(log, tallied) {
                log.tally = Some(tally_of(log).into());
            }
        }
    }
}

/// What each author has in a log.
pub(super) fn tally_of(log: &AddressLog) -> Tally {
    let mut tally = Tally::default();
    for entry in log.entries() {
        tally.add(entry.payer(), entry.bytes as usize);
    }
    tally
}

/// A log has lost an entry: its author pays for it no more.
pub(super) fn discharge(totals: &Totals, log: &mut AddressLog, address: &Address, entry: &LogEntry) {
    let (payer, bytes) = (entry.payer(), entry.bytes as usize);
    let was_last = log.tally.as_mut().is_some_and(|tally| tally.remove(payer, bytes));
    if was_last && matches!(address, Address::Topic(_)) {
        totals.leave_topic(payer);
    }
    totals.discharge(payer, bytes);
}

/// Drops the tally of a mailbox that is small again. Half of `tallied`, so that it is not made and dropped in turn.
pub(super) fn drop_needless_tally(log: &mut AddressLog, address: &Address, tallied: Usage) {
    let needless = match address {
        Address::Session(_) | Address::Backend(_) => !is_tallied(log, tallied.half()),
        Address::Topic(_) => log.tally.as_ref().is_some_and(|tally| tally.is_empty()),
    };
    if needless {
        log.tally = None;
    }
}

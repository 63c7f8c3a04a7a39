//! What happens for each message. Each thread counts in cells of its own, and who reads the metrics adds them up.
//!
//! A thread is the only one that writes its cells. So a cell is read and written with plain instructions, and its cache line
//! stays with one core. Threads that find no free cells share the first ones, and lock each change of those.

use std::array;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::metrics::histogram::{Histogram, Snapshot, class, nanos};
use crate::metrics::labels::SentBy;
use crate::protocol::Transport;

/// How many threads have cells of their own: those of the runtime that serve, the writer, and some that block.
const OWNERS: usize = 64;

static CELLS: [Cells; OWNERS] = [const { Cells::new() }; OWNERS];

/// The cells of one thread.
#[derive(Debug)]
#[repr(align(128))]
struct Cells {
    /// Whether a thread has them.
    is_taken: AtomicBool,
    accepted: [AtomicU64; SentBy::ALL.len()],
    delivered: [AtomicU64; Transport::ALL.len()],
    commit_wait: Histogram,
    delivery: Histogram,
}

impl Cells {
    const fn new() -> Self {
        Self {
            is_taken: AtomicBool::new(false),
            accepted: [const { AtomicU64::new(0) }; SentBy::ALL.len()],
            delivered: [const { AtomicU64::new(0) }; Transport::ALL.len()],
            commit_wait: Histogram::new(),
            delivery: Histogram::new(),
        }
    }
}

thread_local! {
    static OWN: Own = Own::take();
}

/// The cells that a thread uses.
#[derive(Debug, Clone, Copy)]
enum Using {
    /// Nobody else writes them.
    Own(&'static Cells),
    Shared(&'static Cells),
}

/// The cells that a thread uses until it ends. What it has counted stays in them.
struct Own(Using);

impl Own {
    fn take() -> Self {
        let free = CELLS[1..].iter().find(|cells| {
            let taken = cells.is_taken.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed);
            taken.is_ok()
        });
        Self(free.map_or(Using::Shared(&CELLS[0]), Using::Own))
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        if let Using::Own(cells) = self.0 {
            cells.is_taken.store(false, Ordering::Release);
        }
    }
}

impl Using {
    /// Those of this thread. At its end it uses the shared ones.
    fn now() -> Self {
        OWN.try_with(|own| own.0).unwrap_or(Self::Shared(&CELLS[0]))
    }

    fn cells(self) -> &'static Cells {
        match self {
            Self::Own(cells) | Self::Shared(cells) => cells,
        }
    }

    fn add(self, cell: &AtomicU64, more: u64) {
        match self {
            Self::Own(_) => cell.store(cell.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed),
            Self::Shared(_) => _ = cell.fetch_add(more, Ordering::Relaxed),
        }
    }

    fn observe(self, histogram: &Histogram, time: Duration, times: u64) {
        let nanos = nanos(time);
        self.add(&histogram.classes[class(nanos)], times);
        self.add(&histogram.nanos, nanos.saturating_mul(times));
    }
}

fn sum(cell: impl Fn(&Cells) -> &AtomicU64) -> u64 {
    CELLS.iter().map(|cells| cell(cells).load(Ordering::Relaxed)).sum()
}

fn sum_of(histogram: impl Fn(&Cells) -> &Histogram) -> Snapshot {
    CELLS.iter().fold(Snapshot::default(), |sum, cells| sum.and(histogram(cells).snapshot()))
}

/// Counts a message that is stored, or volatile and published.
pub(crate) fn count_accepted(by: SentBy) {
    let using = Using::now();
    using.add(&using.cells().accepted[by as usize], 1);
}

/// How many messages were accepted.
pub(crate) fn accepted() -> [(SentBy, u64); SentBy::ALL.len()] {
    array::from_fn(|at| (SentBy::ALL[at], sum(|cells| &cells.accepted[at])))
}

/// Counts messages that are given to the connections of readers.
pub(crate) fn count_delivered(transport: Transport, messages: u64) {
    if messages > 0 {
        let using = Using::now();
        using.add(&using.cells().delivered[transport as usize], messages);
    }
}

/// How many messages were delivered.
pub(crate) fn delivered() -> [(Transport, u64); Transport::ALL.len()] {
    array::from_fn(|at| (Transport::ALL[at], sum(|cells| &cells.delivered[at])))
}

/// Notes how long a message has waited for its commit.
pub(crate) fn observe_commit_wait(time: Duration) {
    let using = Using::now();
    using.observe(&using.cells().commit_wait, time, 1);
}

/// How long messages have waited for their commits.
pub(crate) fn commit_wait() -> Snapshot {
    sum_of(|cells| &cells.commit_wait)
}

/// Notes how long it took from the publication of a message until so many readers had it.
pub(crate) fn observe_delivery(time: Duration, readers: u64) {
    let using = Using::now();
    using.observe(&using.cells().delivery, time, readers);
}

/// How long messages took from their publication to their readers.
pub(crate) fn delivery() -> Snapshot {
    sum_of(|cells| &cells.delivery)
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    /// More threads than there are cells count at the same time.
    #[test]
    fn nothing_is_lost_with_more_threads_than_cells() {
        const THREADS: usize = OWNERS + 8;
        let before = accepted()[SentBy::Legacy as usize].1;
        let (begun, barrier) = (commit_wait().count(), Barrier::new(THREADS));
        let shared: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS)
                .map(|_| {
                    scope.spawn(|| {
                        let is_shared = matches!(Using::now(), Using::Shared(_));
                        // All have their cells before the first one ends.
                        barrier.wait();
                        for _ in 0..1_000 {
                            count_accepted(SentBy::Legacy);
                            observe_commit_wait(Duration::from_millis(1));
                        }
                        barrier.wait();
                        usize::from(is_shared)
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert!(shared >= 9, "{shared} threads shared the first cells");
        // Other tests of the same process may count too.
        assert!(accepted()[SentBy::Legacy as usize].1 - before >= THREADS as u64 * 1_000);
        assert!(commit_wait().count() - begun >= THREADS as u64 * 1_000);
    }

    #[test]
    fn a_thread_that_ends_leaves_its_cells_to_others() {
        let cells = |using: Using| std::ptr::from_ref(using.cells()) as usize;
        let first = std::thread::spawn(move || cells(Using::now())).join().unwrap();
        let again = (0..OWNERS).map(|_| std::thread::spawn(move || cells(Using::now())).join().unwrap());
        assert!(again.collect::<Vec<_>>().contains(&first));
    }
}

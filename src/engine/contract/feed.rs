//! Carries publications from the primary to a node: late, out of order, twice, or not at all.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Instant, sleep, timeout};

use super::chance::Chance;
use crate::engine::Embedded;
use crate::hub::{EndReason, HubEvent, HubReceiver, Hubs, Interest, ReaderHandle, Transport};
use crate::message::{Address, Publication, Seq};
use crate::sync::lock;

/// How long a feed goes on after the last reader left.
const GRACE: Duration = Duration::from_millis(5);

/// The feeds of one node, by address.
#[derive(Debug, Default)]
pub(super) struct Feeds {
    feeds: Mutex<HashMap<Address, FeedState>>,
    /// Notified when readers came or left.
    changed: Notify,
    /// Notified when a subscription is up.
    up: Notify,
}

#[derive(Debug, Default)]
struct FeedState {
    is_read: bool,
    subscription: Option<Arc<Subscription>>,
}

/// A subscription at the primary.
#[derive(Debug, Default)]
struct Subscription {
    /// Notified when the subscription is to end.
    closed: Notify,
    is_closed: AtomicBool,
}

impl Subscription {
    fn close(&self) {
        self.is_closed.store(true, Ordering::SeqCst);
        self.closed.notify_one();
    }
}

impl Interest for Feeds {
    fn first_reader(&self, address: &Address) {
        let mut feeds = lock(&self.feeds);
        let feed = feeds.entry(address.clone()).or_default();
        assert!(!feed.is_read, "the calls for one address alternate");
        feed.is_read = true;
        self.changed.notify_one();
    }

    fn last_reader_left(&self, address: &Address) {
        let mut feeds = lock(&self.feeds);
        let feed = feeds.get_mut(address).expect("a first reader came before");
        assert!(feed.is_read, "the calls for one address alternate");
        feed.is_read = false;
        self.changed.notify_one();
    }
}

impl Feeds {
    /// Waits until an address that is read here is subscribed to.
    pub(super) async fn subscribed(&self, address: &Address) {
        loop {
            let mut up = std::pin::pin!(self.up.notified());
            up.as_mut().enable();
            let is_up = match lock(&self.feeds).get(address) {
                Some(feed) => !feed.is_read || feed.subscription.is_some(),
                None => true,
            };
            if is_up {
                return;
            }
            up.await;
        }
    }

    /// Whether this address has a subscription.
    pub(super) fn has(&self, address: &Address) -> bool {
        lock(&self.feeds).get(address).is_some_and(|feed| feed.subscription.is_some())
    }

    /// Closes subscriptions. Those that are still needed are made again.
    pub(super) fn close(&self, address: Option<&Address>) {
        let mut feeds = lock(&self.feeds);
        for (_, feed) in feeds.iter_mut().filter(|(one, _)| address.is_none_or(|address| address == *one)) {
            if let Some(subscription) = feed.subscription.take() {
                subscription.close();
            }
        }
        self.changed.notify_one();
    }

    /// Subscribes to every address that is read, and unsubscribes when it is read no more.
    pub(super) async fn run(
        self: Arc<Self>,
        primary: impl Fn() -> (Embedded, Hubs) + Send + Sync + 'static,
        hubs: Hubs,
        chance: Chance,
    ) {
        loop {
            self.changed.notified().await;
            chance.delay().await;
            let mut leaving = false;
            for (address, feed) in lock(&self.feeds).iter_mut() {
                leaving |= !feed.is_read;
                if feed.is_read && feed.subscription.is_none() {
                    let (engine, at_primary) = primary();
                    let (handle, events) = at_primary
                        .join(address, Seq::START, Transport::Websocket, usize::MAX)
                        .expect("no limit");
                    let subscription = Arc::new(Subscription::default());
                    feed.subscription = Some(Arc::clone(&subscription));
                    let carrier = Carrier { engine, handle, hubs: hubs.clone(), chance: chance.clone() };
                    tokio::spawn(carrier.run(events, subscription, Arc::clone(&self)));
                }
            }
            self.up.notify_waiters();
            if leaving {
                tokio::spawn(Arc::clone(&self).unsubscribe(Instant::now() + GRACE));
            }
        }
    }

    async fn unsubscribe(self: Arc<Self>, at: Instant) {
        tokio::time::sleep_until(at).await;
        lock(&self.feeds).retain(|_, feed| {
            if !feed.is_read
                && let Some(subscription) = feed.subscription.take()
            {
                subscription.close();
            }
            feed.is_read
        });
    }

    /// Notes that an address has ended at the primary. Answers whether its readers here are to end.
    fn ended(&self, address: &Address, subscription: &Arc<Subscription>) -> bool {
        let mut feeds = lock(&self.feeds);
        let Some(feed) = feeds.get_mut(address) else { return false };
        let is_current = feed.subscription.as_ref().is_some_and(|current| Arc::ptr_eq(current, subscription));
        if is_current {
            feed.subscription = None;
        }
        is_current && feed.is_read
    }
}

/// Carries the events of one address.
struct Carrier {
    engine: Embedded,
    handle: ReaderHandle,
    hubs: Hubs,
    chance: Chance,
}

impl Carrier {
    async fn run(self, mut events: HubReceiver, subscription: Arc<Subscription>, feeds: Arc<Feeds>) {
        let address = self.handle.address().clone();
        // A replica may not have yet what was published before the subscription.
        self.announce(&address).await;
        let mut held: Option<(Seq, Arc<Publication>)> = None;
        loop {
            let event = tokio::select! {
                () = subscription.closed.notified() => break,
                event = timeout(Duration::from_millis(2), events.recv()) => event,
            };
            self.chance.delay().await;
            if subscription.is_closed.load(Ordering::SeqCst) {
                break;
            }
            match event {
                Ok(Ok(HubEvent::Stored { prev, publication })) => {
                    self.carry(&address, (prev, publication), &mut held);
                }
                Ok(Ok(HubEvent::Volatile(publication))) => {
                    self.hubs.publish_volatile(&address, &publication);
                }
                Ok(Ok(HubEvent::Ended(reason))) => {
                    if feeds.ended(&address, &subscription) {
                        self.hubs.end(&address, reason);
                    }
                    break;
                }
                Ok(Err(RecvError::Closed)) => {
                    if feeds.ended(&address, &subscription) {
                        self.hubs.end(&address, EndReason::SessionEnded);
                    }
                    break;
                }
                Ok(Ok(HubEvent::Available(_) | HubEvent::EpochChanged) | Err(RecvError::Lagged(_))) => {
                    self.announce(&address).await;
                }
                // Nothing comes now: publish what was kept back.
                Err(_) => {
                    if let Some((prev, publication)) = held.take() {
                        self.hubs.publish(&address, &publication, prev);
                    }
                }
            }
        }
        self.handle.leave();
    }

    async fn announce(&self, address: &Address) {
        self.hubs.wake(address, self.engine.position(address).await.newest);
    }

    /// Publishes a message once or twice, keeps it back until the next, or loses it and announces it later.
    fn carry(
        &self,
        address: &Address,
        (prev, publication): (Seq, Arc<Publication>),
        held: &mut Option<(Seq, Arc<Publication>)>,
    ) {
        match self.chance.up_to(8) {
            0 | 1 if held.is_none() => return *held = Some((prev, publication)),
            2 => {
                let (hubs, address) = (self.hubs.clone(), address.clone());
                let seq = publication.seq().expect("stored");
                tokio::spawn(async move {
                    sleep(Duration::from_millis(3)).await;
                    hubs.wake(&address, seq);
                });
            }
            3 => {
                self.hubs.publish(address, &publication, prev);
                self.hubs.publish(address, &publication, prev);
            }
            _ => self.hubs.publish(address, &publication, prev),
        }
        if let Some((prev, publication)) = held.take() {
            self.hubs.publish(address, &publication, prev);
        }
    }
}

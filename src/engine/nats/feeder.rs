//! Subscribes to the addresses that are read here.
//!
//! Each subscription of the client library has a channel, of about 5 KB. So the addresses of a stream are in groups, and a node
//! subscribes to the groups of what is read here. What comes for other addresses of a group is dropped.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};

use async_nats::{Message, Subscriber};
use futures::StreamExt;
use futures::stream::{AbortHandle, Abortable, SelectAll};
use tokio::sync::Notify;
use tokio::time::{Duration, Instant, sleep, sleep_until};

use crate::engine::nats::feeds::Change;
use crate::engine::nats::names::{Place, token_of};
use crate::engine::nats::node::Core;
use crate::message::Address;
use crate::sync::{lock, shrink};

/// Pause before a subscription is tried again.
const FAILURE_PAUSE: Duration = Duration::from_millis(200);

/// A change of what is read of one stream.
#[derive(Debug)]
enum Route {
    Open(Address, Place),
    Close(Place),
}

/// Changes on their way to the task of a stream.
#[derive(Debug, Default)]
struct Inbox {
    routes: Mutex<Vec<Route>>,
    changed: Notify,
}

impl Inbox {
    fn put(&self, route: Route) {
        lock(&self.routes).push(route);
        self.changed.notify_one();
    }
}

/// A group that is subscribed to.
#[derive(Debug)]
struct Group {
    /// Of how many addresses.
    addresses: usize,
    end: AbortHandle,
}

/// What is read of one stream.
#[derive(Debug, Default)]
struct Routes {
    addresses: HashMap<u128, Address>,
    groups: HashMap<u16, Group>,
    messages: SelectAll<Abortable<Subscriber>>,
}

impl Core {
    /// Subscribes to what is read here, as long as it is read.
    pub(super) async fn run_feeds(self: Arc<Self>) {
        let inboxes: Vec<Arc<Inbox>> = self.specs.iter().map(|_| Arc::default()).collect();
        for (stream, inbox) in inboxes.iter().enumerate() {
            let feeder = Arc::clone(&self).run_feeder(stream, Arc::clone(inbox));
            tokio::spawn(self.stop.clone().run_until_cancelled_owned(feeder));
        }
        let put = |place: &Place, route| {
            if let Some(inbox) = inboxes.get(place.stream) {
                inbox.put(route);
            }
        };
        // In the order of their times, since the grace is the same for all.
        let mut leaving: VecDeque<(Instant, Address)> = VecDeque::new();
        loop {
            let grace = async {
                match leaving.front() {
                    Some((at, _)) => sleep_until(*at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.feeds.changed.notified() => for change in self.feeds.take_changes() {
                    match change {
                        Change::Read(address) => {
                            let place = self.place(&address);
                            put(&place.clone(), Route::Open(address, place));
                        }
                        Change::Left(address, at) => leaving.push_back((at, address)),
                    }
                },
                () = grace => {
                    let now = Instant::now();
                    while leaving.front().is_some_and(|(at, _)| *at <= now)
                        && let Some((_, address)) = leaving.pop_front()
                    {
                        if self.feeds.close(&address, now) {
                            let place = self.place(&address);
                            put(&place.clone(), Route::Close(place));
                        }
                    }
                }
            }
        }
    }

    /// Carries what is republished of a stream to the readers here.
    async fn run_feeder(self: Arc<Self>, stream: usize, inbox: Arc<Inbox>) {
        let mut routes = Routes::default();
        loop {
            tokio::select! {
                () = inbox.changed.notified() => {
                    let changes = std::mem::take(&mut *lock(&inbox.routes));
                    self.apply_routes(&mut routes, changes).await;
                }
                message = async { self.signals.nets.released().await; routes.messages.next().await },
                    if !routes.messages.is_empty() => if let Some(message) = message {
                        self.route(&routes, stream, &message);
                    }
            }
        }
    }

    fn route(&self, routes: &Routes, stream: usize, message: &Message) {
        let address = token_of(&message.subject).and_then(|token| routes.addresses.get(&token));
        if let Some(address) = address {
            self.carry(address, stream, message);
        }
    }

    async fn apply_routes(&self, routes: &mut Routes, changes: Vec<Route>) {
        let mut opened = Vec::new();
        for change in changes {
            match change {
                Route::Open(address, place) => {
                    match routes.groups.get_mut(&place.group) {
                        Some(group) => group.addresses += 1,
                        None => {
                            let Some(messages) = self.subscribe_to(&place).await else { return };
                            let (messages, end) = futures::stream::abortable(messages);
                            routes.messages.push(messages);
                            routes.groups.insert(place.group, Group { addresses: 1, end });
                        }
                    }
                    routes.addresses.insert(place.token, address.clone());
                    opened.push(address);
                }
                Route::Close(place) => {
                    routes.addresses.remove(&place.token);
                    let Some(group) = routes.groups.get_mut(&place.group) else { continue };
                    group.addresses -= 1;
                    if group.addresses == 0 {
                        group.end.abort();
                        routes.groups.remove(&place.group);
                    }
                }
            }
        }
        shrink(&mut routes.addresses);
        self.feeds.set_up(&opened);
    }

    /// Subscribes to a group; `None` if this node stops.
    async fn subscribe_to(&self, place: &Place) -> Option<Subscriber> {
        loop {
            match self.link.subscribe(self.names.live_group(place)).await {
                Ok(messages) => return Some(messages),
                Err(_) if self.stop.is_cancelled() => return None,
                Err(_) => sleep(FAILURE_PAUSE).await,
            }
        }
    }
}

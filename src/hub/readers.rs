//! The readers of one hub, its channel, and what the readers keep from being deleted.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Waker;

use tokio::sync::broadcast;

use crate::hub::Transport;
use crate::hub::channel::{End, Numbered};
use crate::hub::outlets::FEWEST;
use crate::hub::reader::AttachedReader;
use crate::message::Seq;

/// How many readers are looked at under the lock before they are woken without it.
pub(super) const AT_ONCE: usize = 32;

/// So few readers are written to by who sends.
const FEW: usize = FEWEST - 1;

/// The readers of a hub.
#[derive(Debug, Default)]
pub(super) struct HubReaders {
    /// How many handles there are, detached ones included.
    pub(super) handles: usize,
    /// The readers that a deletion waits for, and that are woken. Each stays at its place.
    places: Vec<Option<Arc<AttachedReader>>>,
    /// Places that are free.
    free: Vec<usize>,
    /// Made when the first event is put into it: it has room for all its events from its beginning, and most hubs of sessions
    /// are idle. Full, its slowest reader loses an event and reads the engine.
    channel: Option<broadcast::Sender<Numbered>>,
    /// The highest acknowledgement.
    pub(super) acked: Seq,
    /// Up to where the engine was told to delete.
    pub(super) trimmed: Seq,
    /// Up to where it was told so although a reader still needed it.
    pub(super) released: Seq,
}

impl HubReaders {
    /// Adds a reader of what comes after the first `at` events, which were sent, if there are fewer than `most`. Returns its
    /// place, and its end of the channel if there is one.
    pub(super) fn attach(
        &mut self,
        position: Seq,
        transport: Transport,
        most: usize,
        at: u64,
    ) -> Option<(usize, Arc<AttachedReader>, Option<End>)> {
        if self.handles >= most {
            return None;
        }
        self.handles += 1;
        let reader = Arc::new(AttachedReader::new(position.0, transport, at));
        let place = self.free.pop().unwrap_or_else(|| {
            // Most hubs have one reader.
            if self.places.is_empty() {
                self.places.reserve_exact(1);
            }
            self.places.push(None);
            self.places.len() - 1
        });
        self.places[place] = Some(Arc::clone(&reader));
        Some((place, reader, self.end()))
    }

    /// Neither a deletion waits for this reader any more, nor is it woken. Returns the reader, if it was attached.
    pub(super) fn detach(&mut self, place: usize) -> Option<Arc<AttachedReader>> {
        let reader = self.places[place].take()?;
        self.free.push(place);
        Some(reader)
    }

    /// The readers that are attached.
    pub(super) fn attached(&self) -> impl Iterator<Item = &AttachedReader> {
        self.places.iter().flatten().map(AsRef::as_ref)
    }

    /// An end of the channel for what is put into it from now on.
    pub(super) fn end(&self) -> Option<End> {
        self.channel.as_ref().map(End::new)
    }

    /// Makes the channel, if there is none.
    pub(super) fn open(&mut self, slots: usize) {
        if self.channel.is_none() {
            let channel = broadcast::Sender::new(slots);
            self.places.iter().flatten().for_each(|reader| reader.give(End::new(&channel)));
            self.channel = Some(channel);
        }
    }

    /// Puts an event into the channel. Who waits is to be woken: see [`Self::end_waits`].
    pub(super) fn send(&self, event: Numbered) {
        // An error means that no reader listens at this moment. It reads the store later.
        _ = self.channel.as_ref().map(|channel| channel.send(event));
    }

    /// Ends the waits of the readers at some places from `from` on. Returns their wakers, and where to go on.
    pub(super) fn end_waits(&self, from: usize) -> ([Option<Waker>; AT_ONCE], Option<usize>) {
        let mut wakers = [const { None }; AT_ONCE];
        let places = self.places.get(from..).unwrap_or_default();
        for (waker, place) in wakers.iter_mut().zip(places) {
            *waker = place.as_ref().and_then(|reader| reader.end_wait());
        }
        (wakers, (places.len() > AT_ONCE).then_some(from + AT_ONCE))
    }

    /// The readers at some places from `from` on; `None` if there is no such place.
    pub(super) fn some_from(&self, from: usize) -> Option<[Option<Arc<AttachedReader>>; AT_ONCE]> {
        let places = self.places.get(from..).filter(|places| !places.is_empty())?;
        let mut readers = [const { None }; AT_ONCE];
        readers.iter_mut().zip(places).for_each(|(reader, place)| reader.clone_from(place));
        Some(readers)
    }

    /// The readers that are attached, if they are few and one of them takes a message that is written to its connection.
    pub(super) fn few(&self) -> Option<impl Iterator<Item = &AttachedReader>> {
        let are_few = self.places.len() <= FEW && self.attached().any(AttachedReader::takes_one);
        are_few.then(|| self.attached())
    }

    /// Up to where no attached reader needs anything and all is acknowledged, if that is further than before.
    pub(super) fn trimmable(&mut self) -> Option<Seq> {
        if self.acked <= self.trimmed {
            return None;
        }
        let slowest = self.attached().map(|reader| reader.position.load(Ordering::SeqCst)).min();
        let through = slowest.map_or(self.acked, |slowest| self.acked.min(Seq(slowest)));
        (through > self.trimmed).then(|| {
            self.trimmed = through;
            through
        })
    }
}

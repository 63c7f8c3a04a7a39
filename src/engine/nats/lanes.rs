//! Appends on their way: one after the other for each address, so that a retry never overtakes.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::Mutex;

use tokio::sync::oneshot;

use crate::engine::{Append, EngineError, QueueBounds};
use crate::message::{Address, Seq};
use crate::sync::{lock, shrink};

/// An append on its way, and who waits for it.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) append: Append,
    pub(super) answer: oneshot::Sender<Result<Seq, EngineError>>,
}

/// All appends on their way.
#[derive(Debug, Default)]
pub(super) struct Lanes(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    lanes: HashMap<Address, VecDeque<Job>>,
    messages: usize,
    bytes: usize,
}

fn size(append: &Append) -> usize {
    append.message.payload.get().len()
}

impl Lanes {
    /// Puts an append at the end of the lane of its address. Answers whether the lane is new, so that somebody has to take
    /// from it.
    ///
    /// # Errors
    /// [`EngineError::Overloaded`].
    pub(super) fn push(&self, job: Job, bounds: QueueBounds) -> Result<bool, EngineError> {
        let mut waiting = lock(&self.0);
        let (messages, bytes) = (waiting.messages, waiting.bytes);
        if messages >= bounds.messages || bytes + size(&job.append) > bounds.bytes {
            return Err(EngineError::Overloaded { messages, bytes, bounds });
        }
        waiting.messages += 1;
        waiting.bytes += size(&job.append);
        Ok(match waiting.lanes.entry(job.append.address.clone()) {
            Entry::Occupied(mut lane) => {
                lane.get_mut().push_back(job);
                false
            }
            Entry::Vacant(place) => {
                place.insert([job].into());
                true
            }
        })
    }

    /// The next append to an address. Without one its lane is gone.
    pub(super) fn next(&self, address: &Address) -> Option<Job> {
        let mut waiting = lock(&self.0);
        let job = waiting.lanes.get_mut(address).and_then(VecDeque::pop_front);
        match &job {
            Some(job) => {
                waiting.messages -= 1;
                waiting.bytes -= size(&job.append);
            }
            None => {
                waiting.lanes.remove(address);
                shrink(&mut waiting.lanes);
            }
        }
        job
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Author, Kind, Message, TopicName};
    use serde_json::value::RawValue;

    fn job(payload: &str) -> Job {
        let payload = RawValue::from_string(payload.to_owned()).unwrap();
        let message = Message { kind: Kind::Message, from: None, payload, reference: None, ts: 0 };
        let address = Address::Topic(TopicName::new("t").unwrap());
        let (answer, _) = oneshot::channel();
        Job { append: Append::new(address, message, Author::Anonymous), answer }
    }

    #[test]
    fn appends_of_an_address_come_in_order_and_what_waits_is_bounded() {
        let (lanes, bounds) = (Lanes::default(), QueueBounds { messages: 2, bytes: 5 });
        assert!(lanes.push(job("1"), bounds).unwrap() && !lanes.push(job("2"), bounds).unwrap());
        let refused = lanes.push(job("3"), bounds).unwrap_err();
        assert_eq!(refused, EngineError::Overloaded { messages: 2, bytes: 2, bounds });
        let address = job("0").append.address;
        for expected in ["1", "2"] {
            assert_eq!(lanes.next(&address).unwrap().append.message.payload.get(), expected);
        }
        assert!(lanes.push(job("123456"), bounds).is_err());
        assert!(lanes.next(&address).is_none());
        assert!(lanes.push(job("4"), bounds).unwrap(), "the lane is new again");
    }
}

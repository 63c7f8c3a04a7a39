//! Who reads an address or a topic, on all nodes: nodes ask each other.

use std::collections::HashSet;
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_nats::{Message, Subscriber};
use bytes::Bytes;
use futures::StreamExt;
use serde::Serialize;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout_at};

use crate::engine::nats::error::AskError;
use crate::engine::nats::node::Core;
use crate::engine::nats::peers::{Announcement, Answer, Question, from_numbers, merge, to_numbers};
use crate::hub::{Connections, MemberPage};
use crate::message::{Address, BackendName, SenderName, SessionId, TopicName};

/// How long answers of other nodes are waited for.
const ANSWERS: Duration = Duration::from_millis(250);

/// How often a node says that it is there.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// Most answers of nodes that wait to be taken.
const NODES: usize = 256;

/// Most names that a node answers.
const NAMES: usize = 1_000;

fn encode(what: &impl Serialize) -> Bytes {
    serde_json::to_vec(what).expect("strings and numbers always encode").into()
}

/// What this node hears from the others.
#[derive(Debug)]
pub(super) struct Ears {
    beats: Subscriber,
    questions: Subscriber,
    announcements: Subscriber,
}

impl Core {
    /// Finds the other nodes, and begins to listen to them.
    ///
    /// # Errors
    /// [`AskError`].
    pub(super) async fn meet(&self) -> Result<Ears, AskError> {
        let ears = Ears {
            beats: self.link.subscribe(self.names.control("node")).await?,
            questions: self.link.subscribe(self.names.control("who")).await?,
            announcements: self.link.subscribe(self.names.control("members")).await?,
        };
        let hello = encode(&Answer { node: self.node.clone(), ..Answer::default() });
        let mut answers = self.link.ask(self.names.control("node"), None, hello, NODES).await?;
        let until = Instant::now() + ANSWERS;
        while let Ok(Some(answer)) = timeout_at(until, answers.recv()).await {
            self.heard(&answer);
        }
        Ok(ears)
    }

    /// Notes that a node is there, and answers one that asks for it.
    fn heard(&self, beat: &Message) -> bool {
        let node = serde_json::from_slice(&beat.payload).map(|Answer { node, .. }| node);
        match node {
            Ok(node) if node != self.node => {
                self.peers.heard(&node);
                true
            }
            _ => false,
        }
    }

    /// Answers the other nodes, until this one stops.
    pub(super) async fn run_ears(core: Weak<Self>, mut ears: Ears) {
        let mut beats = interval(HEARTBEAT);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = beats.tick() => {
                    let Some(core) = core.upgrade() else { return };
                    core.forget_peers();
                    core.say("node", &Answer { node: core.node.clone(), ..Answer::default() }).await;
                }
                Some(beat) = ears.beats.next() => {
                    let Some(core) = core.upgrade() else { return };
                    if core.heard(&beat) && let Some(reply) = beat.reply {
                        core.tell(reply.to_string(), &Answer { node: core.node.clone(), ..Answer::default() }).await;
                    }
                }
                Some(question) = ears.questions.next() => {
                    let Some(core) = core.upgrade() else { return };
                    if let (Some(answer), Some(reply)) = (core.answer(&question.payload), question.reply) {
                        core.tell(reply.to_string(), &answer).await;
                    }
                }
                Some(announcement) = ears.announcements.next() => {
                    let Some(core) = core.upgrade() else { return };
                    core.note_announcement(&announcement.payload);
                }
                else => return,
            }
        }
    }

    /// Says something to all nodes. It may be lost.
    async fn say(&self, what: &str, content: &impl Serialize) {
        self.tell(self.names.control(what), content).await;
    }

    async fn tell(&self, subject: String, content: &impl Serialize) {
        if self.link.is_up() {
            // A connection that has just ended tells nobody.
            _ = self.link.client().publish(subject, encode(content)).await;
        }
    }

    fn forget_peers(&self) {
        self.peers.forget(None).iter().for_each(|topic| self.hubs.members().changed_elsewhere(topic));
    }

    fn note_announcement(&self, payload: &[u8]) {
        let Ok(Announcement { node, topics }) = serde_json::from_slice(payload) else { return };
        if node == self.node {
            return;
        }
        let topics: Vec<TopicName> = topics.iter().filter_map(|name| TopicName::new(name).ok()).collect();
        self.peers.heard(&node);
        self.peers.announced(&node, &topics);
        topics.iter().for_each(|topic| self.hubs.members().changed_elsewhere(topic));
    }

    /// This node's answer.
    fn answer(&self, question: &[u8]) -> Option<Answer> {
        let question: Question = serde_json::from_slice(question).ok()?;
        let address = match &question {
            Question::Session(name) => Address::Session(SessionId::new(name).ok()?),
            Question::Backend(name) => Address::Backend(BackendName::new(name).ok()?),
            Question::Topic(name) => Address::Topic(TopicName::new(name).ok()?),
            Question::Members(topic, after, limit) => {
                let after = after.as_deref().map(SenderName::new).transpose().ok()?;
                let page = self.hubs.members().page(&TopicName::new(topic).ok()?, after.as_ref(), *limit);
                let members = page.members.iter().map(ToString::to_string).collect();
                return Some(Answer {
                    node: self.node.clone(),
                    count: page.count,
                    members,
                    ..Answer::default()
                });
            }
        };
        let connections = to_numbers(self.hubs.presence(&address));
        Some(Answer { node: self.node.clone(), connections, ..Answer::default() })
    }

    /// The answers of the other nodes, as far as they come in time.
    async fn ask_nodes(&self, question: &Question) -> Vec<Answer> {
        let mut missing: HashSet<String> = self.peers.all();
        if missing.is_empty() {
            return Vec::new();
        }
        let asked = self.link.ask(self.names.control("who"), None, encode(question), NODES).await;
        let Ok(mut answers) = asked else { return Vec::new() };
        let (until, mut all) = (Instant::now() + ANSWERS, Vec::new());
        while !missing.is_empty()
            && let Ok(Some(answer)) = timeout_at(until, answers.recv()).await
        {
            let Ok(answer) = serde_json::from_slice::<Answer>(&answer.payload) else { continue };
            missing.remove(&answer.node);
            if answer.node != self.node {
                all.push(answer);
            }
        }
        all
    }

    /// See [`crate::engine::Engine::presence`].
    pub(super) async fn presence(&self, address: &Address) -> Connections {
        let question = match address {
            Address::Session(name) => Question::Session(name.to_string()),
            Address::Backend(name) => Question::Backend(name.to_string()),
            Address::Topic(name) => Question::Topic(name.to_string()),
        };
        let others = self.ask_nodes(&question).await;
        others
            .into_iter()
            .map(|answer| from_numbers(answer.connections))
            .fold(self.hubs.presence(address), Connections::with)
    }

    /// See [`crate::engine::Engine::members`].
    pub(super) async fn members(
        &self,
        topic: &TopicName,
        after: Option<&SenderName>,
        limit: usize,
    ) -> MemberPage {
        let asked = limit.max(NAMES);
        let question = Question::Members(topic.to_string(), after.map(ToString::to_string), asked);
        let others = self.ask_nodes(&question).await.into_iter().map(|answer| MemberPage {
            count: answer.count,
            members: answer.members.iter().filter_map(|name| SenderName::new(name).ok()).collect(),
        });
        let here = self.hubs.members().page(topic, after, asked);
        merge(std::iter::once(here).chain(others).collect(), limit)
    }

    /// See [`crate::engine::Engine::announce_members`].
    pub(super) fn announce_members(self: &Arc<Self>, topics: &[TopicName]) {
        if topics.is_empty() {
            return;
        }
        let topics = topics.iter().map(ToString::to_string).collect();
        let announcement = Announcement { node: self.node.clone(), topics };
        let core = Arc::clone(self);
        tokio::spawn(async move { core.say("members", &announcement).await });
    }
}

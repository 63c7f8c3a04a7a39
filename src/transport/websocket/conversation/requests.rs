//! The frames of a client.

use std::ops::ControlFlow;

use futures::FutureExt;

use crate::broker::{BrokerError, Sending};
use crate::edge::{Refusal, TopicRequest};
use crate::hub::Transport;
use crate::message::{Seq, TopicName};
use crate::protocol::{ClientFrame, Code, SendRequest, ServerFrame};
use crate::transport::websocket::conversation::{Conversation, End};
use crate::transport::websocket::window::Window;

impl Conversation {
    /// Acts on a text frame. Errors are answered; only a `hello` can end the conversation.
    pub(super) async fn on_frame(&mut self, text: &str) -> ControlFlow<End> {
        match ClientFrame::decode(text) {
            // Boxed so that an idle connection does not hold the memory of a request. An acknowledgement needs less.
            Ok(ClientFrame::Ack(seq)) if self.caller.is_some() => Box::pin(self.on_ack(seq)).await,
            Ok(frame) => return Box::pin(self.on_request(frame)).await,
            Err(bad) => self.refuse(bad.id.as_ref(), &bad.reason.into()),
        }
        ControlFlow::Continue(())
    }

    async fn on_request(&mut self, frame: ClientFrame) -> ControlFlow<End> {
        match frame {
            ClientFrame::Hello { session, token, resume, window } => {
                if self.caller.is_none() {
                    self.window = Window::new(window);
                }
                return self.on_hello(session, token, resume).await;
            }
            ClientFrame::Ping => self.answer(&ServerFrame::Pong),
            frame if self.caller.is_none() => self.refuse_before_hello(&frame),
            ClientFrame::Send(send) => self.on_send(send).await,
            ClientFrame::Ack(seq) => self.on_ack(seq).await,
            ClientFrame::Subscribe { topic, resume, presence } => {
                self.on_subscribe(TopicRequest { topic, resume, presence }).await;
            }
            ClientFrame::Unsubscribe(topic) => self.on_unsubscribe(&topic),
        }
        ControlFlow::Continue(())
    }

    fn refuse_before_hello(&mut self, frame: &ClientFrame) {
        let id = if let ClientFrame::Send(send) = frame { send.id.as_ref() } else { None };
        let text = r#"say who you are first: {"type":"hello","session":"…"}, or with a `token` where the server wants one"#;
        self.refuse(id, &Refusal::new(Code::Unauthorized, text));
    }

    async fn on_send(&mut self, send: SendRequest) {
        let id = send.id.clone();
        let Some(caller) = &self.caller else { return };
        let mut sending = match self.gateway.send(caller, send).await {
            Ok(sending) => sending,
            Err(refusal) => return self.refuse_send(id.as_ref(), &refusal),
        };
        // A send that is stored at once is answered at once, unless older sends wait. A volatile one is never stored
        // and waits for nothing.
        let answer_now = self.sends.is_empty() || matches!(sending, Sending::Volatile(_));
        match answer_now.then(|| (&mut sending).now_or_never()).flatten() {
            Some(result) => self.on_stored(id.as_ref(), result),
            None => self.sends.push_back((id, sending)),
        }
    }

    async fn on_ack(&mut self, seq: Seq) {
        let Some(caller) = &self.caller else { return };
        let broker = &self.gateway.broker;
        let acked = match &self.mailbox {
            Some(mailbox) => broker.acknowledge_as(mailbox, seq).await.map_err(Refusal::from),
            None => match caller.mailbox() {
                Ok(mailbox) => broker.acknowledge(&mailbox, seq, None).await.map_err(Refusal::from),
                Err(refusal) => Err(refusal),
            },
        };
        match acked {
            Ok(_) => self.window.acknowledged(seq),
            Err(refusal) => self.refuse(None, &refusal),
        }
    }

    async fn on_subscribe(&mut self, request: TopicRequest) {
        let TopicRequest { topic, resume, presence } = &request;
        let limit = self.gateway.config.max_topics;
        if self.topics.len() >= limit && !self.topics.contains(topic) {
            return self.refuse(None, &Refusal::too_many_topics(limit));
        }
        let Some(caller) = &self.caller else { return };
        if let Err(denied) = request.check(&caller.grant) {
            return self.refuse(None, &BrokerError::from(denied).into());
        }
        let broker = &self.gateway.broker;
        let member = caller.grant.member().map(|name| broker.join(topic, name));
        let (subscriber, opening) = broker.topic(topic, resume, Transport::Websocket).await;
        self.topics.insert(topic.clone(), subscriber, member);
        let presence = self.topics.set_watched(broker, topic, *presence).await;
        let (seq, recovered) = (opening.seq, opening.recovered);
        self.answer(&ServerFrame::Subscribed { topic, seq, recovered, presence });
    }

    fn on_unsubscribe(&mut self, topic: &TopicName) {
        if self.topics.remove(topic) {
            return self.answer(&ServerFrame::Unsubscribed { topic });
        }
        let text = format!("topic `{topic}` is not subscribed to on this socket");
        self.refuse(None, &Refusal::new(Code::NotFound, text));
    }
}

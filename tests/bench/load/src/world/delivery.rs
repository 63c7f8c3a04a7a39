//! Deliveries, publishes, and their acknowledgements.
use super::*;

impl World {
    pub(super) fn set_live(&mut self, i: usize) {
        if self.conns[i].phase < LIVE {
            self.conns[i].phase = LIVE;
            self.live += 1;
            if self.track {
                self.newly_live.push(i);
            }
        }
    }

    /// x0: acknowledges what a subscriber has received.
    pub(super) fn acknowledge(&mut self, i: usize) {
        let seq = self.conns[i].newest.to_string();
        self.conns[i].unacked = 0;
        self.say(i, &client_frame(1, frames::WS_ACK.replace("{N}", &seq).as_bytes()));
    }

    pub(super) fn messages(&mut self, i: usize, b: &[u8]) -> usize {
        let (mut pos, mut k) = (0, 0);
        while let Some(m) = next_mark(b, &mut pos) {
            k += 1;
            self.n.delivered += 1;
            if self.measuring {
                self.n.in_window += 1;
                if m.ts >= self.from {
                    self.hist.add(self.now.saturating_sub(m.ts));
                }
            }
            let c = &mut self.conns[i];
            if m.ch != c.ch {
                self.n.misrouted += 1;
            }
            c.got += 1;
            if m.seq >= c.next_seq {
                let gap = m.seq - c.next_seq + 1;
                c.seen = if gap >= 64 { 1 } else { (c.seen << gap) | 1 };
                c.next_seq = m.seq + 1;
            } else {
                let d = c.next_seq - 1 - m.seq;
                if d < 64 && (c.seen >> d) & 1 == 1 {
                    self.n.dup += 1;
                } else {
                    self.n.ooo += 1;
                    if d < 64 {
                        c.seen |= 1 << d;
                    }
                }
            }
            if self.track && c.got == 1 {
                self.newly_got.push(i);
            }
        }
        k
    }

    pub(super) fn acked(&mut self, i: usize, ts: u64) {
        self.n.acks += 1;
        let c = &mut self.conns[i];
        c.inflight = c.inflight.saturating_sub(1);
        if self.durable && self.measuring {
            self.n.acks_in_window += 1;
            if ts >= self.from {
                self.hist.add(self.now.saturating_sub(ts));
            }
        }
    }

    pub(super) fn ack_oldest(&mut self, i: usize) {
        let ts = self.conns[i].stamps.pop_front().unwrap_or(0);
        self.acked(i, ts);
    }

    pub(super) fn ack_tag(&mut self, i: usize, tag: u32) {
        let c = &self.conns[i];
        let ts = if c.by_tag.is_empty() { 0 } else { c.by_tag[tag as usize % 65535] };
        self.acked(i, ts);
    }

    /// Do publishes on this target come back acknowledged?
    pub fn acks(&self) -> bool {
        match (self.t.proto, self.t.via) {
            (_, Via::Http) | (Proto::Nchan, _) | (Proto::X0, _) => true,
            (Proto::Mqtt, _) => self.t.qos > 0,
            (Proto::Nats, _) | (Proto::Limit, _) => self.durable,
        }
    }

    /// Queues one publish on connection `i`; call `flush` to send.
    pub fn publish(&mut self, i: usize, ch: u32, ts: u64) {
        let seq = self.seqs[ch as usize];
        self.seqs[ch as usize] += 1;
        let acks = self.acks();
        let c = &mut self.conns[i];
        let b = self.tpl.render(Mark { ts, ch, seq }, c.tag);
        c.out.extend_from_slice(b);
        if acks {
            c.inflight += 1;
            if matches!(self.t.proto, Proto::Nats | Proto::Mqtt) {
                if c.by_tag.is_empty() {
                    c.by_tag = vec![0; 65535];
                }
                c.by_tag[c.tag as usize % 65535] = ts;
            } else {
                c.stamps.push_back(ts);
            }
        }
        c.tag = c.tag.wrapping_add(1);
        self.n.published += 1;
    }

    /// NATS: asks for the stream that stores what the durable workload publishes.
    pub fn nats_stream(&mut self, i: usize, channels: usize) {
        let names: Vec<String> = (0..channels).map(|c| format!("\"{}\"", Self::ch_name(c as u32))).collect();
        let js = format!(
            r#"{{"name":"LG","subjects":[{}],"storage":"file","retention":"limits","max_msgs":2000000,"discard":"old"}}"#,
            names.join(",")
        );
        let f = format!("PUB $JS.API.STREAM.CREATE.LG _I.ffffffff {}\r\n{js}\r\n", js.len());
        self.say(i, f.as_bytes());
        for _ in 0..200 {
            self.poll(10_000_000);
            if self.n.acks > 0 {
                break;
            }
        }
        self.n.acks = 0;
    }
}

//! WebSocket: upgrades, frames, and what their messages mean to each target.
use super::*;

impl World {
    pub(super) fn ws(&mut self, i: usize, b: &[u8]) -> usize {
        let mut off = 0;
        if self.conns[i].phase == 0 {
            let Some(p) = memmem::find(b, b"\r\n\r\n") else { return 0 };
            if !b.starts_with(b"HTTP/1.1 101")
                || memmem::find(&b[..p], b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=").is_none()
            {
                let t = String::from_utf8_lossy(&b[..b.len().min(200)]).into_owned();
                self.gone(i, format!("no upgrade: {t}"));
                return b.len();
            }
            off = p + 4;
            self.conns[i].phase = 1;
            if self.conns[i].kind == Kind::WsSub {
                let hello = self.t.sub_hello(&Self::ch_name(self.conns[i].ch), i);
                if !hello.is_empty() {
                    self.say(i, &hello);
                }
                if self.t.live_at_upgrade() {
                    self.set_live(i);
                }
            } else {
                self.set_live(i);
            }
        }
        while let Some((op, s, e, _)) = ws_frame(&b[off..]) {
            let body = &b[off + s..off + e];
            off += e;
            match op {
                0..=2 => self.ws_message(i, body),
                8 => {
                    let t = String::from_utf8_lossy(body).into_owned();
                    self.gone(i, format!("close frame {t:?}"));
                    return b.len();
                }
                9 => self.say(i, &client_frame(10, body)),
                _ => {}
            }
        }
        off
    }

    pub(super) fn ws_message(&mut self, i: usize, b: &[u8]) {
        let has = |n: &str| memmem::find(b, n.as_bytes()).is_some();
        let sub = self.conns[i].kind == Kind::WsSub;
        match self.t.proto {
            Proto::Nats | Proto::Mqtt => {
                let f = if self.t.proto == Proto::Nats { Self::nats } else { Self::mqtt };
                if self.conns[i].stream.is_empty() {
                    let used = f(self, i, b);
                    self.conns[i].stream.extend_from_slice(&b[used..]);
                } else {
                    let mut s = std::mem::take(&mut self.conns[i].stream);
                    s.extend_from_slice(b);
                    let used = f(self, i, &s);
                    s.drain(..used);
                    self.conns[i].stream = s;
                }
            }
            Proto::X0 if has(frames::WS_ERROR) => {
                self.error(String::from_utf8_lossy(b).into_owned());
                if !sub {
                    self.ack_oldest(i);
                }
            }
            Proto::X0 if !sub => {
                if b.starts_with(frames::WS_SENT.as_bytes()) {
                    self.ack_oldest(i);
                }
            }
            Proto::X0 if self.conns[i].phase < LIVE => {
                if has(if self.t.topic { frames::WS_SUBSCRIBED } else { frames::WS_WELCOME }) {
                    self.set_live(i);
                }
            }
            Proto::X0 => {
                if self.messages(i, b) > 0 && !self.t.topic {
                    let seq = number_after(b, b"\"seq\":").unwrap_or(0);
                    let c = &mut self.conns[i];
                    c.newest = seq;
                    c.unacked += 1;
                    if c.unacked >= self.ack_every {
                        self.acknowledge(i);
                    } else if !c.acks_due {
                        c.acks_due = true;
                        self.acks_due.push_back((self.now + self.ack_after, i));
                    }
                }
            }
            Proto::Limit if !sub => {
                let k = b.len() as u64;
                for _ in 0..k {
                    self.ack_oldest(i);
                }
            }
            Proto::Nchan if !sub => self.ack_oldest(i),
            _ => {
                self.messages(i, b);
            }
        }
    }
}

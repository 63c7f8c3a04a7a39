//! Server-Sent Events, long-polls, and the answers to publishes over HTTP.
use super::*;

impl World {
    /// Reads whole events. The lengths of chunks stand between events, and look like none.
    pub(super) fn sse(&mut self, i: usize, b: &[u8]) -> usize {
        let mut off = 0;
        if self.conns[i].phase == 0 {
            let Some(p) = memmem::find(b, b"\r\n\r\n") else { return 0 };
            if !b.starts_with(b"HTTP/1.1 200") {
                let t = String::from_utf8_lossy(&b[..b.len().min(200)]).into_owned();
                self.gone(i, format!("no events: {t}"));
                return b.len();
            }
            off = p + 4;
            self.conns[i].phase = 1;
        }
        let Some(end) = memmem::rfind(&b[off..], b"\n\n") else { return off };
        let events = &b[off..off + end + 2];
        let first: &[u8] = if self.t.topic { b"event: subscribed" } else { b"event: welcome" };
        if self.conns[i].phase < LIVE && memmem::find(events, first).is_some() {
            self.set_live(i);
        }
        self.messages(i, events);
        off + events.len()
    }

    pub(super) fn http(&mut self, i: usize, b: &[u8]) -> usize {
        let mut off = 0;
        while let Some(r) = http_resp(&b[off..]) {
            let (head, body) = (&b[off..off + r.head], &b[off + r.head..off + r.used]);
            off += r.used;
            if self.conns[i].kind == Kind::Pub {
                // What the x0 client is refused has status 200.
                let refused =
                    self.t.legacy() && memmem::find(body, frames::LEGACY_ERROR.as_bytes()).is_some();
                if refused || !(200..300).contains(&r.status) {
                    self.error(format!("publish answered {}: {}", r.status, String::from_utf8_lossy(body)));
                }
                self.ack_oldest(i);
                if header(head, "connection").is_some_and(|v| v.eq_ignore_ascii_case(b"close")) {
                    // a server without keep-alive: dial again (use --pipeline 1 with these)
                    self.redial(i);
                    return b.len();
                }
            } else {
                self.lp_answer(i, r.status, head, body);
            }
        }
        off
    }

    pub(super) fn lp_answer(&mut self, i: usize, status: u16, head: &[u8], body: &[u8]) {
        if status >= 400 && status != 408 {
            self.error(format!("poll answered {status}: {}", String::from_utf8_lossy(body)));
        }
        // ask again first: a server must not lose what comes meanwhile
        if self.t.proto == Proto::Nchan && status == 200 {
            let t = |n| String::from_utf8_lossy(header(head, n).unwrap_or(b"")).into_owned();
            let (lm, et) = (t("last-modified"), t("etag"));
            let c = &mut self.conns[i];
            c.poll.clear();
            c.poll.extend_from_slice(
                format!(
                    "GET /sub/lp?id={} HTTP/1.1\r\nHost: 127.0.0.1\r\nIf-Modified-Since: {lm}\r\nIf-None-Match: {et}\r\n\r\n",
                    Self::ch_name(c.ch)
                )
                .as_bytes(),
            );
        }
        if self.t.proto == Proto::X0 && !self.x0_poll(i, body) {
            return;
        }
        let p = std::mem::take(&mut self.conns[i].poll);
        self.say(i, &p);
        self.conns[i].poll = p;
        self.messages(i, body);
    }

    /// x0: the next request of a long-poller; false if this answer was none to a poll.
    pub(super) fn x0_poll(&mut self, i: usize, body: &[u8]) -> bool {
        self.lp_requests += 1;
        if self.t.legacy() {
            let (n, p) = (self.lp_requests, &mut self.conns[i].poll);
            if let Some(at) = memmem::find(p, b"a__=") {
                put_dec(&mut p[at + 4..at + 14], n);
            }
            return true;
        }
        let Some(at) = memmem::rfind(body, b"],\"seq\":") else { return false };
        let seq = number_after(&body[at..], b"\"seq\":").unwrap_or(0);
        let epoch = body.split(|&c| c == b'"').nth(3).unwrap_or(b"").to_vec();
        let (ch, epoch) = (Self::ch_name(self.conns[i].ch), String::from_utf8_lossy(&epoch).into_owned());
        let poll = self.t.x0_poll(&ch, Some((seq, &epoch)));
        if self.lp_ack && seq > self.conns[i].newest {
            let ack = format!("{{\"session\":\"{ch}\",\"seq\":{seq},\"epoch\":\"{epoch}\"}}");
            self.conns[i].out.extend_from_slice(&http_post("/v1/ack", &ack, &self.t.bearer(&ch)));
        }
        let c = &mut self.conns[i];
        c.newest = seq;
        c.poll = poll;
        true
    }
}

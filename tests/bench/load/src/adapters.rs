//! What each server speaks: handshakes, subscribe and publish bytes.
//! Everything is rendered once to bytes and then patched in place.
use crate::frames;
use crate::wire::*;
use memchr::memmem;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Proto {
    Nchan,
    Nats,
    Mqtt,
    X0,
    Limit,
}

/// How a publisher connection talks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Via {
    Http,
    Ws,
    Raw,
}

#[derive(Clone)]
pub struct Target {
    pub proto: Proto,
    pub name: String,
    pub ws_port: u16,
    pub lp_port: u16,
    pub pub_port: u16,
    pub via: Via,
    pub qos: u8,
    pub ws_path: Option<String>,
    /// x0: messages go to a topic, not to sessions.
    pub topic: bool,
    /// x0: the secret of the tokens that prove who connects.
    pub secret: Option<Vec<u8>>,
    /// x0: subscribers read Server-Sent Events.
    pub sse: bool,
}

impl Target {
    pub fn new(name: &str) -> Option<Target> {
        use Proto::*;
        let (proto, ws, lp, p, via) = match name {
            "nchan" => (Nchan, 9101, 9101, 9101, Via::Http),
            "nats" => (Nats, 9112, 0, 9111, Via::Raw),
            "mosquitto" => (Mqtt, 9122, 0, 9121, Via::Raw),
            "limit" => (Limit, 9171, 9171, 9171, Via::Ws),
            "x0" | "x0-legacy" => (X0, 9181, 9181, 9181, Via::Ws),
            _ => return None,
        };
        Some(Target {
            proto,
            name: name.into(),
            ws_port: ws,
            lp_port: lp,
            pub_port: p,
            via,
            qos: 0,
            ws_path: None,
            topic: false,
            secret: None,
            sse: false,
        })
    }

    fn upgrade(path: &str, sub: &str) -> Vec<u8> {
        format!(
            "GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{sub}\r\n"
        )
        .into_bytes()
    }

    /// The x0 client of today.
    pub fn legacy(&self) -> bool {
        self.name == "x0-legacy"
    }

    /// x0: the header that proves who calls; empty in `open` mode.
    pub fn bearer(&self, name: &str) -> String {
        match &self.secret {
            Some(secret) => format!("Authorization: Bearer {}\r\n", crate::token::sign(secret, name)),
            None => String::new(),
        }
    }

    /// x0: `path?session=NAME`, without the session if a token names it.
    fn x0_path(&self, path: &str, name: &str) -> String {
        if self.secret.is_some() { format!("{path}?") } else { format!("{path}?session={name}") }
    }

    /// x0: the session of a subscriber.
    fn x0_session(&self, ch: &str, id: usize) -> String {
        if self.topic { format!("s{id:06}") } else { ch.into() }
    }

    /// x0: the request of a subscriber that reads Server-Sent Events.
    pub fn sse_get(&self, ch: &str, id: usize) -> Vec<u8> {
        let session = self.x0_session(ch, id);
        let topic = if self.topic { format!("&topic={ch}") } else { String::new() };
        self.get(&format!("{}{topic}", self.x0_path(frames::SSE_PATH, &session)), &session)
    }

    fn get(&self, path: &str, name: &str) -> Vec<u8> {
        format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{}\r\n", self.bearer(name)).into_bytes()
    }

    /// x0: the next poll of a session.
    pub fn x0_poll(&self, ch: &str, after: Option<(u64, &str)>) -> Vec<u8> {
        let after = after.map_or(String::new(), |(seq, epoch)| format!("&after={seq}&epoch={epoch}"));
        self.get(&format!("{}&wait=60{after}", self.x0_path(frames::HTTP_PATH, ch)), ch)
    }

    /// Upgrade request of a subscriber to channel `ch` (as text).
    pub fn sub_upgrade(&self, ch: &str) -> Vec<u8> {
        let mqtt = "Sec-WebSocket-Protocol: mqtt\r\n";
        let x0 = format!("Sec-WebSocket-Protocol: {}\r\n", frames::WS_PROTOCOL);
        let (p, s) = match self.proto {
            Proto::Nchan => (format!("/sub/ws?id={ch}"), ""),
            Proto::Nats => ("/".into(), ""),
            Proto::Mqtt => ("/mqtt".into(), mqtt),
            Proto::X0 => (frames::WS_PATH.into(), x0.as_str()),
            Proto::Limit => (format!("/ws?c={ch}"), ""),
        };
        Self::upgrade(&self.ws_path.clone().map(|w| w.replace(frames::CH, ch)).unwrap_or(p), s)
    }

    /// Upgrade request of a publisher; `id` is unique per connection.
    pub fn pub_upgrade(&self, id: usize) -> Vec<u8> {
        let p = match self.proto {
            Proto::Nchan => "/pub/ws?id=c000000".to_string(),
            Proto::X0 => {
                let name = format!("p{id}");
                return Self::upgrade(&self.x0_path(frames::WS_PATH, &name), &self.bearer(&name));
            }
            Proto::Limit => "/pub".into(),
            _ => "/".into(),
        };
        Self::upgrade(&p, "")
    }

    /// Frames a subscriber sends right after its upgrade; `id` is unique per connection.
    pub fn sub_hello(&self, ch: &str, id: usize) -> Vec<u8> {
        match self.proto {
            Proto::Nats => client_frame(
                2,
                format!("CONNECT {{\"verbose\":false,\"pedantic\":false,\"headers\":false}}\r\nSUB {ch} 1\r\nPING\r\n").as_bytes(),
            ),
            Proto::Mqtt => {
                let mut f = client_frame(2, &mqtt_connect(&format!("s{}-{id}", std::process::id())));
                let mut b = vec![0u8, 1];
                mqtt_str(&mut b, ch);
                b.push(self.qos);
                f.extend(client_frame(2, &mqtt_packet(0x82, &b)));
                f
            }
            Proto::X0 => {
                let session = self.x0_session(ch, id);
                let hello = match &self.secret {
                    None => frames::WS_HELLO.replace("{S}", &session),
                    Some(secret) => frames::WS_HELLO_TOKEN.replace("{T}", &crate::token::sign(secret, &session)),
                };
                let mut f = client_frame(1, hello.as_bytes());
                if self.topic {
                    f.extend(client_frame(1, frames::WS_SUB.replace(frames::CH, ch).as_bytes()));
                }
                f
            }
            _ => vec![],
        }
    }

    /// Is a subscriber live as soon as it is upgraded?
    pub fn live_at_upgrade(&self) -> bool {
        matches!(self.proto, Proto::Nchan | Proto::Limit)
    }

    /// First request of a long-poller; and, for most, every further one.
    pub fn lp_get(&self, ch: &str) -> Vec<u8> {
        match self.proto {
            Proto::Nchan => format!("GET /sub/lp?id={ch} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n").into_bytes(),
            Proto::X0 if self.legacy() => http_post(
                frames::LEGACY_PATH,
                &frames::LEGACY_GET.replace(frames::CH, ch),
                frames::LEGACY_ORIGIN,
            ),
            Proto::X0 => self.x0_poll(ch, None),
            _ => format!("GET /lp?c={ch} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n").into_bytes(),
        }
    }

    /// The bytes of one publish.
    pub fn template(&self, size: usize, durable: bool) -> Template {
        let p = payload(size);
        let ch = frames::CH;
        let raw = match (self.proto, self.via) {
            (Proto::Nchan, Via::Http) => http_post(&format!("/pub?id={ch}"), &p, ""),
            (Proto::Nchan, _) => client_frame(1, p.as_bytes()),
            (Proto::Nats, _) if durable => {
                format!("PUB {ch} _I.00000000 {}\r\n{p}\r\n", p.len()).into_bytes()
            }
            (Proto::Nats, _) => format!("PUB {ch} {}\r\n{p}\r\n", p.len()).into_bytes(),
            (Proto::Mqtt, _) => {
                let mut b = vec![];
                mqtt_str(&mut b, ch);
                if self.qos > 0 {
                    b.extend([0xfe, 0xfe]);
                }
                b.extend(p.as_bytes());
                mqtt_packet(0x30 | (self.qos << 1), &b)
            }
            (Proto::X0, Via::Http) if self.legacy() => {
                http_post(frames::LEGACY_PATH, &frames::LEGACY_SET.replace("{P}", &p), frames::LEGACY_ORIGIN)
            }
            (Proto::X0, via) => {
                let f = if via == Via::Ws { frames::WS_SEND } else { frames::HTTP_SEND };
                let f = match (self.topic, &self.secret) {
                    (true, _) => frames::to_topic(f),
                    (false, Some(_)) => frames::to_user(f),
                    (false, None) => f.into(),
                }
                .replace("{P}", &p);
                let path = self.x0_path(frames::HTTP_PATH, "p0");
                if via == Via::Ws {
                    client_frame(1, f.as_bytes())
                } else {
                    http_post(&path, &f, &self.bearer("p0"))
                }
            }
            (Proto::Limit, _) => client_frame(if durable { 2 } else { 1 }, format!("{ch}{p}").as_bytes()),
        };
        Template::new(raw, self)
    }
}

pub fn http_post(path: &str, body: &str, extra: &str) -> Vec<u8> {
    format!(
        "POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n{extra}Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// One publish with the places that change.
pub struct Template {
    pub buf: Vec<u8>,
    ch: Vec<usize>,
    marks: Vec<usize>,
    reply: Option<usize>,
    /// x0: where the id of the message is, which no other connection may give.
    unique: Option<usize>,
    given: u32,
    pid: Option<usize>,
}

impl Template {
    fn new(buf: Vec<u8>, t: &Target) -> Self {
        let all = |n: &[u8]| memmem::find_iter(&buf, n).collect::<Vec<_>>();
        let (ch, marks) = (all(frames::CH.as_bytes()), all(MARK_ZERO.as_bytes()));
        let id = all(b"_I.00000000").first().map(|p| p + 3);
        let (reply, unique) = if t.proto == Proto::X0 { (None, id) } else { (id, None) };
        // eight of its ten digits
        let unique = unique.or_else(|| all(b"a__=0000000000").first().map(|p| p + 6));
        let pid = (t.proto == Proto::Mqtt && t.qos > 0).then(|| ch[0] + 7);
        Template {
            buf,
            ch,
            marks,
            reply,
            unique,
            // One more each microsecond, which is more than are given: the next run begins above them. The broker refuses an id
            // that it knows with another payload.
            given: (crate::world::now_ns() / 1_000 % 90_000_000) as u32,
            pid,
        }
    }

    /// Patches and returns the bytes; `tag` numbers the publishes of one connection.
    pub fn render(&mut self, m: Mark, tag: u32) -> &[u8] {
        for &p in &self.ch {
            put_ch(&mut self.buf[p..p + 7], m.ch);
        }
        for &p in &self.marks {
            put_mark(&mut self.buf[p..p + MARK_LEN], m);
        }
        if let Some(p) = self.reply {
            put_hex(&mut self.buf[p..p + 8], tag as u64);
        }
        if let Some(p) = self.unique {
            self.given += 1;
            put_dec(&mut self.buf[p..p + 8], self.given);
        }
        if let Some(p) = self.pid {
            self.buf[p..p + 2].copy_from_slice(&pid(tag).to_be_bytes());
        }
        &self.buf
    }
}

/// MQTT packet ids are 1..=65535.
pub fn pid(tag: u32) -> u16 {
    (tag % 65535) as u16 + 1
}

pub fn mqtt_str(b: &mut Vec<u8>, s: &str) {
    b.extend((s.len() as u16).to_be_bytes());
    b.extend(s.as_bytes());
}

pub fn mqtt_packet(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut f = vec![kind];
    let mut n = body.len();
    loop {
        let b = (n & 127) as u8;
        n >>= 7;
        f.push(if n > 0 { b | 128 } else { b });
        if n == 0 {
            break;
        }
    }
    f.extend(body);
    f
}

/// MQTT 3.1.1 CONNECT, clean session, no keep-alive.
pub fn mqtt_connect(id: &str) -> Vec<u8> {
    let mut b = vec![];
    mqtt_str(&mut b, "MQTT");
    b.extend([4, 2, 0, 0]);
    mqtt_str(&mut b, id);
    mqtt_packet(0x10, &b)
}

/// (kind byte, body start, end) of a whole MQTT packet.
pub fn mqtt_next(b: &[u8]) -> Option<(u8, usize, usize)> {
    let (mut n, mut i) = (0usize, 1);
    loop {
        let c = *b.get(i)?;
        n |= ((c & 127) as usize) << (7 * (i - 1));
        i += 1;
        if c < 128 {
            break;
        }
    }
    (b.len() >= i + n).then_some((b[0], i, i + n))
}

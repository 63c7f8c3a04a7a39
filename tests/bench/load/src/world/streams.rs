//! NATS and MQTT: byte streams, over TCP and over WebSocket.
use super::*;

impl World {
    pub(super) fn nats(&mut self, i: usize, b: &[u8]) -> usize {
        let mut off = 0;
        while let Some(e) = memchr::memchr(b'\n', &b[off..]) {
            let line = &b[off..off + e];
            match line.first() {
                Some(b'M') => {
                    let line = line.trim_ascii_end();
                    let n = line.rsplit(|&c| c == b' ').next().unwrap_or(b"0");
                    let n = n.iter().fold(0usize, |a, c| a * 10 + (c & 15) as usize);
                    let s = off + e + 1;
                    if b.len() < s + n + 2 {
                        return off;
                    }
                    let body = &b[s..s + n];
                    if line.starts_with(b"MSG _I.") {
                        if memmem::find(body, b"\"error\"").is_some() {
                            self.error(String::from_utf8_lossy(body).into_owned());
                        }
                        let tag = line[7..15].iter().fold(0u32, |a, &c| {
                            (a << 4) | if c > b'9' { (c - b'a' + 10) as u32 } else { (c - b'0') as u32 }
                        });
                        self.ack_tag(i, tag);
                    } else {
                        self.messages(i, body);
                    }
                    off = s + n + 2;
                    continue;
                }
                Some(b'P') if line.starts_with(b"PING") => {
                    if self.conns[i].kind == Kind::Pub {
                        self.say(i, b"PONG\r\n");
                    } else {
                        self.say(i, &client_frame(2, b"PONG\r\n"));
                    }
                }
                Some(b'P') => self.set_live(i),
                Some(b'-') => self.error(String::from_utf8_lossy(line).into_owned()),
                _ => {}
            }
            off += e + 1;
        }
        off
    }

    pub(super) fn mqtt(&mut self, i: usize, b: &[u8]) -> usize {
        let mut off = 0;
        while let Some((kind, s, e)) = mqtt_next(&b[off..]) {
            let p = &b[off + s..off + e];
            off += e;
            match kind >> 4 {
                2 if p.get(1) != Some(&0) => self.error(format!("connack {p:?}")),
                2 if self.conns[i].kind == Kind::Pub => self.set_live(i),
                9 => self.set_live(i),
                3 => {
                    if kind & 6 != 0 {
                        let t = 2 + u16::from_be_bytes([p[0], p[1]]) as usize;
                        self.say(i, &client_frame(2, &[0x40, 2, p[t], p[t + 1]]));
                    }
                    self.messages(i, p);
                }
                4 => {
                    let id = u16::from_be_bytes([p[0], p[1]]) as u32;
                    self.ack_tag(i, id - 1);
                }
                _ => {}
            }
        }
        off
    }
}

//! Byte-level pieces: the payload marker, WebSocket frames, HTTP responses.
use memchr::{memchr, memmem};

/// `@T` + 16 hex digits of nanoseconds + 8 of channel + 8 of sequence number.
pub const MARK_LEN: usize = 34;
pub const MARK_ZERO: &str = "@T00000000000000000000000000000000";

#[derive(Clone, Copy, Debug)]
pub struct Mark {
    pub ts: u64,
    pub ch: u32,
    pub seq: u32,
}

pub fn put_hex(dst: &mut [u8], mut v: u64) {
    for b in dst.iter_mut().rev() {
        *b = b"0123456789abcdef"[(v & 15) as usize];
        v >>= 4;
    }
}

fn get_hex(src: &[u8]) -> u64 {
    src.iter().fold(0, |a, &c| {
        let d = if c <= b'9' { c.wrapping_sub(b'0') } else { (c | 32).wrapping_sub(b'a').wrapping_add(10) };
        (a << 4) | d as u64
    })
}

pub fn put_mark(dst: &mut [u8], m: Mark) {
    put_hex(&mut dst[2..18], m.ts);
    put_hex(&mut dst[18..26], m.ch as u64);
    put_hex(&mut dst[26..34], m.seq as u64);
}

/// The next marker at or after `*pos`; moves `*pos` past it.
pub fn next_mark(b: &[u8], pos: &mut usize) -> Option<Mark> {
    while let Some(p) = memchr(b'@', &b[*pos..]) {
        let s = *pos + p;
        if b.len() < s + MARK_LEN {
            return None;
        }
        if b[s + 1] == b'T' {
            *pos = s + MARK_LEN;
            return Some(Mark {
                ts: get_hex(&b[s + 2..s + 18]),
                ch: get_hex(&b[s + 18..s + 26]) as u32,
                seq: get_hex(&b[s + 26..s + 34]) as u32,
            });
        }
        *pos = s + 1;
    }
    None
}

/// A JSON payload of exactly `len` bytes (at least 50) holding a zero marker.
pub fn payload(len: usize) -> String {
    let base = format!("{{\"k\":\"{MARK_ZERO}\",\"p\":\"\"}}");
    let fill = len.saturating_sub(base.len());
    format!("{{\"k\":\"{MARK_ZERO}\",\"p\":\"{}\"}}", "x".repeat(fill))
}

pub fn put_dec(dst: &mut [u8], mut v: u32) {
    for b in dst.iter_mut().rev() {
        *b = b'0' + (v % 10) as u8;
        v /= 10;
    }
}

/// Channel names are `c` and six digits.
pub fn put_ch(dst: &mut [u8], ch: u32) {
    dst[0] = b'c';
    put_dec(&mut dst[1..7], ch);
}

/// The number after the first `key`, which ends with its colon.
pub fn number_after(b: &[u8], key: &[u8]) -> Option<u64> {
    let at = memmem::find(b, key)? + key.len();
    let digits = b[at..].iter().take_while(|c| c.is_ascii_digit());
    Some(digits.fold(0, |n, c| n * 10 + (c & 15) as u64))
}

/// A masked client frame; the mask is zero, so the text stays patchable in place.
pub fn client_frame(op: u8, body: &[u8]) -> Vec<u8> {
    let mut f = vec![0x80 | op];
    match body.len() {
        n @ 0..=125 => f.push(0x80 | n as u8),
        n @ 126..=65535 => {
            f.push(0x80 | 126);
            f.extend_from_slice(&(n as u16).to_be_bytes());
        }
        n => {
            f.push(0x80 | 127);
            f.extend_from_slice(&(n as u64).to_be_bytes());
        }
    }
    f.extend_from_slice(&[0; 4]);
    f.extend_from_slice(body);
    f
}

/// Header of an unmasked server frame.
pub fn server_head(op: u8, n: usize, out: &mut Vec<u8>) {
    out.push(0x80 | op);
    if n < 126 {
        out.push(n as u8);
    } else if n < 65536 {
        out.push(126);
        out.extend_from_slice(&(n as u16).to_be_bytes());
    } else {
        out.push(127);
        out.extend_from_slice(&(n as u64).to_be_bytes());
    }
}

/// (opcode, payload start, payload end, mask start or 0) of a whole frame.
pub fn ws_frame(b: &[u8]) -> Option<(u8, usize, usize, usize)> {
    if b.len() < 2 {
        return None;
    }
    let masked = b[1] & 0x80 != 0;
    let (mut h, n) = match b[1] & 0x7f {
        126 if b.len() >= 4 => (4, u16::from_be_bytes([b[2], b[3]]) as usize),
        127 if b.len() >= 10 => (10, u64::from_be_bytes(b[2..10].try_into().unwrap()) as usize),
        126 | 127 => return None,
        n => (2, n as usize),
    };
    let m = if masked { h } else { 0 };
    if masked {
        h += 4;
    }
    if b.len() < h + n {
        return None;
    }
    Some((b[0] & 15, h, h + n, m))
}

pub struct Resp {
    pub status: u16,
    pub head: usize,
    pub used: usize,
}

pub fn header<'a>(head: &'a [u8], name: &str) -> Option<&'a [u8]> {
    for line in head.split(|&c| c == b'\n').skip(1) {
        if line.len() > name.len()
            && line[name.len()] == b':'
            && line[..name.len()].eq_ignore_ascii_case(name.as_bytes())
        {
            return Some(line[name.len() + 1..].trim_ascii());
        }
    }
    None
}

/// A whole HTTP/1.1 response: head ends at `head`, all of it at `used`.
pub fn http_resp(b: &[u8]) -> Option<Resp> {
    let head = memmem::find(b, b"\r\n\r\n")? + 4;
    let status = b
        .get(9..12)
        .map(|s| s.iter().fold(0u16, |a, c| a.wrapping_mul(10).wrapping_add((c & 15) as u16)))
        .unwrap_or(0);
    if status == 204 || status == 304 || status < 200 {
        return Some(Resp { status, head, used: head });
    }
    if let Some(v) = header(&b[..head], "content-length") {
        let n = v.iter().fold(0usize, |a, c| a * 10 + (c & 15) as usize);
        return (b.len() >= head + n).then_some(Resp { status, head, used: head + n });
    }
    if header(&b[..head], "transfer-encoding").is_some() {
        let mut p = head;
        loop {
            let e = p + memmem::find(&b[p..], b"\r\n")?;
            let hex: Vec<u8> = b[p..e].iter().copied().take_while(|c| c.is_ascii_hexdigit()).collect();
            let n = get_hex(&hex) as usize;
            p = e + 2 + n + 2;
            if b.len() < p {
                return None;
            }
            if n == 0 {
                return Some(Resp { status, head, used: p });
            }
        }
    }
    Some(Resp { status, head, used: head })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mark_round_trip() {
        let mut p = payload(128).into_bytes();
        assert_eq!(p.len(), 128);
        let at = memmem::find(&p, b"@T").unwrap();
        put_mark(&mut p[at..], Mark { ts: 0x1234_5678_9abc_def0, ch: 77, seq: 9 });
        let mut pos = 0;
        let m = next_mark(&p, &mut pos).unwrap();
        assert_eq!((m.ts, m.ch, m.seq), (0x1234_5678_9abc_def0, 77, 9));
        assert!(next_mark(&p, &mut pos).is_none());
    }

    #[test]
    fn frames() {
        let f = client_frame(1, &[b'a'; 300]);
        let (op, s, e, m) = ws_frame(&f).unwrap();
        assert_eq!((op, e - s, m), (1, 300, 4));
        assert!(ws_frame(&f[..f.len() - 1]).is_none());
    }

    #[test]
    fn responses() {
        let b = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP";
        assert_eq!(http_resp(b).unwrap().used, b.len() - 4);
        let c = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\nH";
        assert_eq!(http_resp(c).unwrap().used, c.len() - 1);
        assert!(http_resp(&c[..c.len() - 4]).is_none());
    }
}

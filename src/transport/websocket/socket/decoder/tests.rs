use super::*;

const LIMIT: usize = 100_000;
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// A frame of a client, masked.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    match payload.len() {
        length @ 0..126 => bytes.push(0x80 | u8::try_from(length).unwrap()),
        length @ 126..65_536 => {
            bytes.push(0x80 | 126);
            bytes.extend(u16::try_from(length).unwrap().to_be_bytes());
        }
        length => {
            bytes.push(0x80 | 127);
            bytes.extend((length as u64).to_be_bytes());
        }
    }
    bytes.extend(MASK);
    bytes.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    bytes
}

/// Everything that is decoded from the bytes, in parts of this size.
fn decode_parts(bytes: &[u8], part: usize) -> Result<Vec<Received>, ReadError> {
    let mut decoder = Decoder::default();
    let mut received = Vec::new();
    for mut input in bytes.chunks(part) {
        while let Some(message) = decoder.decode(&mut input, LIMIT)? {
            received.push(message);
        }
        assert!(input.is_empty());
    }
    Ok(received)
}

fn decode(bytes: &[u8]) -> Result<Vec<Received>, ReadError> {
    let whole = decode_parts(bytes, bytes.len().max(1));
    for part in [1, 2, 3, 7, 13] {
        assert_eq!(decode_parts(bytes, part), whole, "in parts of {part}");
    }
    whole
}

fn text(text: impl Into<String>) -> Received {
    Received::Text(text.into())
}

fn protocol<T: std::fmt::Debug>(result: Result<T, ReadError>) -> &'static str {
    match result {
        Err(ReadError::Protocol(text)) => text,
        other => panic!("{other:?}"),
    }
}

#[test]
fn messages_of_every_length_are_decoded_whatever_the_parts() {
    for length in [0, 1, 5, 125, 126, 127, 1000, 65_535, 65_536, 70_000] {
        let words = "é€x".repeat(length / 6 + 1);
        let words: String = words
            .chars()
            .scan(0, |size, char| {
                *size += char.len_utf8();
                (*size <= length).then_some(char)
            })
            .collect();
        let bytes = [frame(0x81, words.as_bytes()), frame(0x89, b"ping")].concat();
        assert_eq!(decode(&bytes), Ok(vec![text(words), Received::Ping(b"ping".to_vec())]), "{length}");
    }
}

#[test]
fn fragments_make_a_message_and_control_frames_come_between_them() {
    let bytes = [
        // A character is split between two frames.
        frame(0x01, b"caf\xc3"),
        frame(0x8a, b"pong"),
        frame(0x00, b""),
        frame(0x89, b"?"),
        frame(0x80, b"\xa9"),
        frame(0x02, &[0xff; 300]),
        frame(0x80, b"x"),
        frame(0x88, b""),
    ];
    let expected = [
        Received::Pong,
        Received::Ping(b"?".to_vec()),
        text("café"),
        Received::Binary,
        Received::Close(Vec::new()),
    ];
    assert_eq!(decode(&bytes.concat()), Ok(Vec::from(expected)));
}

#[test]
fn a_message_holds_little_more_than_has_come_and_nothing_stays() {
    let bytes = frame(0x81, &[b'x'; 90_000]);
    let mut decoder = Decoder::default();
    assert_eq!(decoder.decode(&mut &bytes[..20], LIMIT), Ok(None));
    assert!(decoder.text.capacity() <= RESERVED);
    assert_eq!(decoder.decode(&mut &bytes[20..50_000], LIMIT), Ok(None));
    assert!(decoder.text.capacity() <= 100_000);
    let Ok(Some(Received::Text(whole))) = decoder.decode(&mut &bytes[50_000..], LIMIT) else { panic!() };
    assert!(whole.len() == 90_000 && whole.capacity() <= 100_000);
    assert_eq!((decoder.text.capacity(), decoder.control.capacity()), (0, 0));
}

#[test]
fn a_message_above_the_limit_is_refused_at_its_header() {
    let too_big = |frames: &[Vec<u8>]| {
        assert_eq!(decode(&frames.concat()), Err(ReadError::TooBig(LIMIT)));
    };
    too_big(&[frame(0x81, &[b'x'; LIMIT + 1])[..14].to_vec()]);
    too_big(&[frame(0x01, &[b'x'; 60_000]), frame(0x80, &[b'x'; 60_000])]);
    too_big(&[frame(0x02, &[b'x'; 60_000]), frame(0x80, &[b'x'; 60_000])]);
    too_big(&[vec![0x81, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]]);
    assert!(decode(&frame(0x81, &[b'x'; LIMIT])).is_ok());
}

#[test]
fn text_must_be_utf8() {
    for wrong in [&b"\xff"[..], b"caf\xc3", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\x80"] {
        assert_eq!(decode(&frame(0x81, wrong)), Err(ReadError::NotUtf8), "{wrong:x?}");
        assert_eq!(decode(&frame(0x88, &[&[3, 232], wrong].concat())), Err(ReadError::NotUtf8), "{wrong:x?}");
    }
}

#[test]
fn violations_of_the_protocol_are_refused() {
    for reserved in [0xc1, 0xa1, 0x91] {
        assert!(protocol(decode(&frame(reserved, b"x"))).contains("reserved bit"));
    }
    for opcode in [0x83, 0x87, 0x8b, 0x8f] {
        assert!(protocol(decode(&frame(opcode, b"x"))).contains("opcode"));
    }
    assert!(protocol(decode(&[0x81, 0x01, b'x'])).contains("masked"));
    for control in [0x08, 0x09, 0x0a] {
        assert!(protocol(decode(&frame(control, b""))).contains("fragmented"));
        assert!(protocol(decode(&frame(control | 0x80, &[0; 126]))).contains("125"));
    }
    assert!(protocol(decode(&frame(0x80, b"x"))).contains("no message"));
    let within = [frame(0x01, b"x"), frame(0x81, b"y")].concat();
    assert!(protocol(decode(&within)).contains("not finished"));
    // A length of 5 in two bytes, and one of 300 in eight.
    for long_form in [&[0x81, 0xfe, 0, 5, 0, 0, 0, 0][..], &[0x81, 0xff, 0, 0, 0, 0, 0, 0, 1, 44, 0, 0, 0, 0]]
    {
        assert!(protocol(decode(long_form)).contains("shortest"));
    }
}

#[test]
fn close_codes_are_those_that_a_peer_may_send() {
    let close = |code: u16| decode(&frame(0x88, &[&code.to_be_bytes()[..], b"bye"].concat()));
    for code in (1000_u16..=1003).chain(1007..=1014).chain([3000, 3999, 4000, 4999]) {
        let payload = [&code.to_be_bytes()[..], b"bye"].concat();
        assert_eq!(close(code), Ok(vec![Received::Close(payload)]), "{code}");
    }
    for code in [0, 1, 999, 1004, 1005, 1006, 1015, 1016, 2000, 2999, 5000, 65_535] {
        assert!(protocol(close(code)).contains("close code"), "{code}");
    }
    assert!(protocol(decode(&frame(0x88, b"\x03"))).contains("two bytes"));
}

#[test]
fn a_mask_is_taken_off_wherever_a_part_begins() {
    let plain: Vec<u8> = (0..=255).collect();
    for at in 0..20 {
        let mut bytes: Vec<u8> =
            plain.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
        let mut mask = MASK;
        unmask(&mut bytes[..at], mask);
        mask.rotate_left(at % 4);
        unmask(&mut bytes[at..], mask);
        assert_eq!(bytes, plain, "{at}");
    }
}

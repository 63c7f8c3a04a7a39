//! Events as the server writes them over HTTP/1.1: each one a chunk (RFC 9112 section 7.1).

use std::io::Write;

use crate::hub::Encoding;
use crate::message::Publication;
use crate::transport::sse::event::push_message;

/// Messages of topics, which have no ids.
pub(super) static ENCODING: Encoding = Encoding { append };

fn append(publication: &Publication, bytes: &mut Vec<u8>) {
    let mut event = String::new();
    push_message(&mut event, None, publication);
    // Writing to memory does not fail.
    _ = write!(bytes, "{:X}\r\n{event}\r\n", event.len());
}

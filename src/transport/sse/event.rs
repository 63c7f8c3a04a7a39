//! The text of one event (HTML standard, section 9.2.6).

use std::fmt::Write;

use crate::message::{Kind, Publication, Seq};

/// Bytes of an event for each line of its data: the name of the field, and the end of the line.
const LINE: usize = "data: \n".len();

/// How many lines end within this text.
pub(super) fn line_breaks(data: &str) -> usize {
    data.bytes().filter(|byte| matches!(byte, b'\n' | b'\r')).count()
}

/// How many bytes one event has whose data ends in so many lines before the last one.
pub(super) fn size(name: Option<&str>, id: Option<Seq>, data: &str, breaks: usize) -> usize {
    let name = name.map_or(0, |name| "event: \n".len() + name.len());
    let id = id.map_or(0, |id| "id: \n".len() + id.width());
    name + id + data.len() - breaks + LINE * (1 + breaks) + "\n".len()
}

/// Adds the fields of an event before its data.
pub(super) fn push_fields(text: &mut String, name: Option<&str>, id: Option<Seq>) {
    if let Some(name) = name {
        _ = writeln!(text, "event: {name}");
    }
    if let Some(id) = id {
        _ = writeln!(text, "id: {id}");
    }
}

/// Adds one event. A payload may have line breaks between its tokens: each line becomes a `data` field, and the browser joins
/// them again.
pub(super) fn push_event(text: &mut String, name: Option<&str>, id: Option<Seq>, data: &str) {
    text.reserve(size(name, id, data, line_breaks(data)));
    push_fields(text, name, id);
    data.split(['\n', '\r']).for_each(|line| push_line(text, line));
    text.push('\n');
}

/// Adds one event whose data is one line.
fn push_one_line(text: &mut String, name: Option<&str>, id: Option<Seq>, data: &str) {
    text.reserve(size(name, id, data, 0));
    push_fields(text, name, id);
    push_line(text, data);
    text.push('\n');
}

/// Adds the event of a small message.
pub(super) fn push_message(text: &mut String, id: Option<Seq>, message: &Publication) {
    let push = if message.is_one_line() { push_one_line } else { push_event };
    push(text, event_name(message.kind()), id, message.frame());
}

/// The name of the event of a message. Messages that were sent have none, so that `onmessage` gets them.
pub(super) fn event_name(kind: Kind) -> Option<&'static str> {
    match kind {
        Kind::Message | Kind::FromBackend | Kind::Request { .. } => None,
        Kind::Receipt => Some("receipt"),
        Kind::Reply { .. } => Some("reply"),
        Kind::Presence => Some("presence"),
    }
}

fn push_line(text: &mut String, line: &str) {
    text.push_str("data: ");
    text.push_str(line);
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(name: Option<&str>, id: Option<Seq>, data: &str) -> String {
        let mut event = String::new();
        push_event(&mut event, name, id, data);
        assert_eq!(event.len(), event.capacity());
        if line_breaks(data) == 0 {
            let mut same = String::new();
            push_one_line(&mut same, name, id, data);
            assert_eq!((&same, same.len()), (&event, same.capacity()));
        }
        event
    }

    #[test]
    fn each_line_of_a_payload_is_a_data_field() {
        assert_eq!(
            event(None, None, "{\"a\":\n1,\r\n\"b\":2}"),
            "data: {\"a\":\ndata: 1,\ndata: \ndata: \"b\":2}\n\n"
        );
        assert_eq!(event(Some("gap"), Some(Seq(17)), "{}"), "event: gap\nid: 17\ndata: {}\n\n");
        assert_eq!(event(None, Some(Seq(0)), "é"), "id: 0\ndata: é\n\n");
    }
}

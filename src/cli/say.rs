//! What a command prints. Much of it comes from a broker, which may be any server: it must not control the terminal.

use std::fmt::Display;
use std::io::{IsTerminal, Write};

use anyhow::{Context, Result};

/// Prints a result, and a newline. For a program it stays as it is.
///
/// # Errors
/// The output cannot be written.
pub fn print(text: impl Display) -> Result<()> {
    let mut out = std::io::stdout().lock();
    let text = match out.is_terminal() {
        true => escape(&text.to_string(), |char| !matches!(char, '\n' | '\t')),
        false => text.to_string(),
    };
    writeln!(out, "{text}").and_then(|()| out.flush()).context("cannot write to the standard output")
}

/// Says something beside the result. A command goes on if nobody can read it.
pub(super) fn note(text: impl Display) {
    _ = writeln!(std::io::stderr(), "{}", escape(&text.to_string(), |_| true));
}

/// Says why a command has failed. Standard error may be closed; the exit code says enough.
pub fn print_error(error: &anyhow::Error) {
    note(format_args!("x0-msg-server: {error:#}"));
}

/// Escapes, as JSON does, what a terminal would obey: the controls of ASCII and C1, and those of the direction of text.
/// In JSON without line breaks it changes no value, only how it is written.
fn escape(text: &str, also: impl Fn(char) -> bool) -> String {
    let mut escaped = String::with_capacity(text.len());
    for char in text.chars() {
        match is_control(char) && also(char) {
            true => escaped.push_str(&format!("\\u{:04x}", u32::from(char))),
            false => escaped.push(char),
        }
    }
    escaped
}

fn is_control(char: char) -> bool {
    char.is_control()
        || matches!(char, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controls_are_escaped_and_the_json_stays_the_same() {
        let line = "{\"payload\":\"a\u{7f}\u{9b}31m\u{202e}b\u{2066}\u{200f}\u{61c} ä😀\"}";
        let escaped = escape(line, |_| true);
        assert_eq!(escaped, r#"{"payload":"a\u007f\u009b31m\u202eb\u2066\u200f\u061c ä😀"}"#);
        let json = |text| serde_json::from_str::<serde_json::Value>(text).unwrap();
        assert_eq!(json(&escaped), json(line));
    }

    #[test]
    fn text_of_a_server_is_one_line_and_moves_no_cursor() {
        assert_eq!(escape("a\u{1b}[2J\r\nb\u{7}", |_| true), r"a\u001b[2J\u000d\u000ab\u0007");
    }
}

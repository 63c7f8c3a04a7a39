//! The headers of a request: those that hyper has parsed, or those that the loop of HTTP/1.1 looks at in its buffer.
//!
//! All checks of headers work on both, so that a request means the same whoever has read it.

use axum::http::HeaderMap;

/// The headers of a request.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Headers<'a> {
    /// As hyper has parsed them.
    Parsed(&'a HeaderMap),
    /// As they came. Names are compared without regard to case.
    Raw(&'a [httparse::Header<'a>]),
}

impl<'a> From<&'a HeaderMap> for Headers<'a> {
    fn from(headers: &'a HeaderMap) -> Self {
        Self::Parsed(headers)
    }
}

impl<'a> Headers<'a> {
    /// All values of a header, in the order in which they came. Its name is in lower case.
    pub(crate) fn all(self, name: &'static str) -> impl Iterator<Item = &'a [u8]> {
        let (parsed, raw) = match self {
            Self::Parsed(headers) => (Some(headers.get_all(name)), &[][..]),
            Self::Raw(headers) => (None, headers),
        };
        let raw = raw.iter().filter(|header| header.name.eq_ignore_ascii_case(name));
        let parsed = parsed.into_iter().flatten().map(|value| value.as_bytes());
        parsed.chain(raw.map(|header| header.value))
    }

    /// The first value of a header.
    #[must_use]
    pub(crate) fn get(self, name: &'static str) -> Option<&'a [u8]> {
        self.all(name).next()
    }

    /// The first value of a header, if it is text.
    #[must_use]
    pub(crate) fn text(self, name: &'static str) -> Option<&'a str> {
        self.get(name).and_then(text)
    }

    /// Whether a header is there.
    #[must_use]
    pub(crate) fn contains(self, name: &'static str) -> bool {
        self.get(name).is_some()
    }
}

/// The text of a value: visible ASCII, spaces and tabs. Anything else has no meaning that all agree on.
#[must_use]
pub(crate) fn text(value: &[u8]) -> Option<&str> {
    let is_text = value.iter().all(|byte| matches!(byte, b' '..=b'~' | b'\t'));
    std::str::from_utf8(value).ok().filter(|_| is_text)
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderName, HeaderValue};

    use super::*;

    #[test]
    fn parsed_and_raw_headers_say_the_same() {
        let pairs: [(&str, &[u8]); 5] =
            [("Host", b"x"), ("VARY", b"a"), ("vary", b"\xe4"), ("Accept", b"a\tb"), ("te", b"")];
        let raw = pairs.map(|(name, value)| httparse::Header { name, value });
        let mut parsed = HeaderMap::new();
        for (name, value) in pairs {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            parsed.append(name, HeaderValue::from_bytes(value).unwrap());
        }
        for headers in [Headers::Raw(&raw), Headers::from(&parsed)] {
            assert_eq!(headers.all("vary").collect::<Vec<_>>(), [&b"a"[..], b"\xe4"]);
            assert_eq!(headers.text("host"), Some("x"));
            assert_eq!(headers.text("accept"), Some("a\tb"));
            assert_eq!((headers.get("te"), headers.text("te")), (Some(&b""[..]), Some("")));
            assert!(!headers.contains("origin") && headers.contains("te"));
        }
    }

    #[test]
    fn text_is_what_a_header_value_calls_so() {
        for byte in 0..=u8::MAX {
            let value = [b'a', byte];
            let expected = HeaderValue::from_bytes(&value).ok();
            let expected = expected.as_ref().and_then(|value| value.to_str().ok());
            assert_eq!(text(&value), expected, "{byte}");
        }
    }
}

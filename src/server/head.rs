//! Checks of the head of a request that hyper leaves to its user (RFC 9112).

use axum::http::Version;
use axum::http::uri::Authority;

use crate::edge::{Headers, plain_host, text};

/// Whether a request names its host and its framing as RFC 9112 wants. h2 checks most rules of HTTP/2. `authority` is the host in
/// the address of the request.
///
/// # Errors
/// What is wrong with the request.
pub(super) fn check(
    version: Version,
    authority: Option<&str>,
    headers: Headers<'_>,
) -> Result<(), &'static str> {
    if version > Version::HTTP_11 {
        return check_host_of_http2(authority, headers);
    }
    check_host(version, headers)?;
    check_framing(headers)
}

/// Section 3.2: one valid `Host`, which only HTTP/1.0 may leave out.
fn check_host(version: Version, headers: Headers<'_>) -> Result<(), &'static str> {
    let mut hosts = headers.all("host");
    match (hosts.next(), hosts.next()) {
        (None, _) if version < Version::HTTP_11 => Ok(()),
        (None, _) => Err("the header Host is missing"),
        (Some(_), Some(_)) => Err("the header Host is given twice"),
        (Some(host), None) if is_host(host) => Ok(()),
        (Some(_), None) => Err("the header Host is not a host with an optional port"),
    }
}

/// RFC 9113 section 8.3.1: the host is in `:authority`, or in `Host`, or the same in both.
fn check_host_of_http2(authority: Option<&str>, headers: Headers<'_>) -> Result<(), &'static str> {
    let mut hosts = headers.all("host");
    match (authority, hosts.next(), hosts.next()) {
        (_, Some(_), Some(_)) => Err("the header Host is given twice"),
        (None, None, _) => Err("the host is missing: neither :authority nor the header Host names it"),
        (None, Some(host), _) if !is_host(host) => Err("the header Host is not a host with an optional port"),
        (Some(authority), Some(host), _) if !host.eq_ignore_ascii_case(authority.as_bytes()) => {
            Err("the header Host names another host than :authority")
        }
        _ => Ok(()),
    }
}

fn is_host(host: &[u8]) -> bool {
    let Some(host) = text(host) else { return false };
    if plain_host(host).is_some() {
        return true;
    }
    let Ok(authority) = host.parse::<Authority>() else { return false };
    let host = authority.host();
    let port_is_valid = match authority.as_str().strip_prefix(host) {
        Some("" | ":") => true,
        Some(_) => authority.port_u16().is_some(),
        // User information comes before the host.
        None => false,
    };
    !host.is_empty() && port_is_valid
}

/// Section 6.1: a body is chunked, once, and has no coding that is not decoded here. A proxy in front may end a body that is
/// chunked twice elsewhere than hyper does.
fn check_framing(headers: Headers<'_>) -> Result<(), &'static str> {
    // What is no text is no coding.
    let values = headers.all("transfer-encoding").map(|value| text(value).unwrap_or("?"));
    let mut codings =
        values.flat_map(|value| value.split(',')).map(str::trim).filter(|coding| !coding.is_empty());
    match (codings.next(), codings.next()) {
        (None, _) => Ok(()),
        (Some(coding), None) if coding.eq_ignore_ascii_case("chunked") => Ok(()),
        _ => Err("the header Transfer-Encoding is not `chunked` alone; no other coding is decoded here"),
    }
}

#[cfg(test)]
mod tests {
    use axum::http::header::HOST;
    use axum::http::{HeaderMap, HeaderValue, Uri};

    use super::*;

    /// Checks a request of HTTP/1 to a path.
    fn check(version: Version, headers: &HeaderMap) -> Result<(), &'static str> {
        super::check(version, None, headers.into())
    }

    #[test]
    fn over_http_2_the_host_is_named_once() {
        let check = |uri, hosts: &[&'static str]| {
            let uri = Uri::from_static(uri);
            let authority = uri.authority().map(|authority| authority.as_str());
            super::check(Version::HTTP_2, authority, (&headers("host", hosts)).into()).is_ok()
        };
        let (named, unnamed) = ("https://msg.example:8443/", "/");
        assert!(check(named, &[]) && check(named, &["MSG.example:8443"]) && check(unnamed, &["msg.example"]));
        assert!(!check(unnamed, &[]) && !check(unnamed, &["a b"]) && !check(unnamed, &["x", "x"]));
        assert!(!check(named, &["msg.example"]) && !check(named, &["msg.example:8443", "msg.example:8443"]));
    }

    fn headers(name: &'static str, values: &[&'static str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn a_host_is_one_valid_host_with_an_optional_port() {
        for host in ["x", "msg.example:8080", "127.0.0.1", "[::1]:8080", "my_service", "localhost:"] {
            assert_eq!(check(Version::HTTP_11, &headers("host", &[host])), Ok(()), "{host}");
        }
        for host in ["", "a b", "user@x", "x/path", "x:port", "x:99999", ":80"] {
            let refused = check(Version::HTTP_11, &headers("host", &[host]));
            assert!(refused.is_err_and(|text| text.contains("not a host")), "{host}");
        }
    }

    #[test]
    fn only_http_1_0_may_leave_the_host_out() {
        let (none, two) = (HeaderMap::new(), headers("host", &["x", "x"]));
        assert_eq!(check(Version::HTTP_10, &none), Ok(()));
        assert!(check(Version::HTTP_11, &none).is_err_and(|text| text.contains("missing")));
        for version in [Version::HTTP_10, Version::HTTP_11] {
            assert!(check(version, &two).is_err_and(|text| text.contains("twice")));
        }
    }

    #[test]
    fn a_body_is_chunked_once_and_nothing_else() {
        for (values, valid) in [
            (&["chunked"][..], true),
            (&["chunked, "], true),
            (&["gzip, chunked"], false),
            (&["gzip", "chunked"], false),
            (&["chunked;q=1"], false),
            (&["chunked, chunked"], false),
            (&["Chunked", "chunked"], false),
        ] {
            let mut headers = headers("transfer-encoding", values);
            headers.insert(HOST, HeaderValue::from_static("x"));
            assert_eq!(check(Version::HTTP_11, &headers).is_ok(), valid, "{values:?}");
        }
    }
}

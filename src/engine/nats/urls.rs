//! Addresses of NATS servers, and what stands in them before the host.

/// Addresses as they may be shown.
pub(super) fn without_password(urls: &str) -> String {
    let shown = urls.split(',').map(|url| match (url.find("://"), url.rfind('@')) {
        (Some(scheme), Some(at)) if scheme < at => format!("{}{}", &url[..scheme + 3], &url[at + 1..]),
        (None, Some(at)) => url[at + 1..].to_owned(),
        _ => url.to_owned(),
    });
    shown.collect::<Vec<_>>().join(",")
}

/// The name and the password in the first address that has them. All servers of a cluster have the same accounts.
pub(super) fn login(urls: &str) -> Option<(String, String)> {
    let user = |url: &str| {
        let (_, rest) = url.split_once("://").unwrap_or(("", url));
        let (user, _) = rest.rsplit_once('@')?;
        let (name, password) = user.split_once(':').unwrap_or((user, ""));
        Some((decoded(name)?, decoded(password)?))
    };
    urls.split(',').find_map(|url| user(url.trim()))
}

/// The text that is written with `%` and two digits for some characters.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let digits = after.split_at_checked(2).filter(|_| *first == b'%');
        let byte =
            digits.and_then(|(digits, _)| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
        match (byte, digits) {
            (Some(byte), Some((_, after))) => {
                bytes.push(byte);
                rest = after;
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_not_shown() {
        let shown = without_password("nats://u:p@a:4222,nats://b,c:d@e");
        assert_eq!(shown, "nats://a:4222,nats://b,e");
    }

    #[test]
    fn a_login_is_that_of_the_first_address_with_one() {
        let login = |urls| login(urls).map(|(name, password)| format!("{name} {password}"));
        assert_eq!(login("nats://a, nats://u:p@b,nats://v:q@c").as_deref(), Some("u p"));
        assert_eq!(login("u%40x:p%3a%2f%@b").as_deref(), Some("u@x p:/%"));
        assert_eq!(login("tls://a:4222"), None);
    }
}

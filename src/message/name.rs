//! Names of sessions, users, topics, backends and messages, and the public handles of sessions.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Serialize;
use utoipa::ToSchema;

/// Longest session id, user id, topic name or message id, in bytes.
pub(crate) const MAX_NAME: usize = 256;

/// Why a name was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The name has no characters.
    #[error("must not be empty")]
    Empty,
    /// The name is longer than 256 bytes.
    #[error("is {0} bytes long; at most {MAX_NAME} are allowed")]
    TooLong(usize),
    /// The name holds a control character.
    #[error("must not contain control characters")]
    Control,
    /// The name of a session or a user looks like a handle.
    #[error("must not have the shape of a handle (h- and 22 characters), which only this broker gives")]
    Handle,
}

/// A name that a session or a user takes. It must not look like a handle: receivers could not tell them apart.
///
/// # Errors
/// [`NameError::Handle`], and those of `new`.
pub(crate) fn taken_name<T>(
    name: &str,
    new: impl FnOnce(&str) -> Result<T, NameError>,
) -> Result<T, NameError> {
    match Handle::has_shape(name) {
        true => Err(NameError::Handle),
        false => new(name),
    }
}

fn check_name(name: &str) -> Result<(), NameError> {
    match name.len() {
        0 => Err(NameError::Empty),
        n if n > MAX_NAME => Err(NameError::TooLong(n)),
        _ if name.chars().any(char::is_control) => Err(NameError::Control),
        _ => Ok(()),
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, ToSchema)]
        #[serde(transparent)]
        // All names have the same rules: they share one schema.
        #[schema(
            as = Name,
            value_type = String,
            description = "A name: 1 to 256 bytes, no control characters",
            min_length = 1,
            max_length = 256,
            pattern = r"^[^\u0000-\u001f\u007f-\u009f]+$"
        )]
        pub struct $type(Arc<str>);

        impl $type {
            /// Checks and keeps a name: 1 to 256 bytes, no control characters.
            ///
            /// # Errors
            /// [`NameError`] says which of the two rules is broken.
            pub fn new(name: &str) -> Result<Self, NameError> {
                check_name(name).map(|()| Self(Arc::from(name)))
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl Borrow<str> for $type {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name! {
    /// Names one logged-in browser session. Several tabs, sockets and polls may hold it at once.
    SessionId
}
name! {
    /// Names a user: sessions belong to users.
    UserId
}
name! {
    /// Names a topic: a channel that anyone allowed may subscribe to.
    TopicName
}
name! {
    /// Names a backend: API keys with this name share its mailbox.
    BackendName
}
name! {
    /// A sender's own name for a message. A retry with the same id stores nothing twice.
    MessageId
}
name! {
    /// What receivers see as `from`: a session id in `open` mode; a user, a handle or a backend's name in `token` mode.
    SenderName
}

/// The public name of a session whose id is secret. It is derived from the id with a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, ToSchema)]
#[schema(value_type = String)]
pub struct Handle(pub [u8; 16]);

impl Handle {
    /// The beginning of every handle.
    const PREFIX: &str = "h-";

    /// Reads a handle; `None` for text that is none.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = URL_SAFE_NO_PAD.decode(text.strip_prefix(Self::PREFIX)?).ok()?;
        bytes.try_into().ok().map(Self)
    }

    /// Whether a name looks like a handle, even if it is none.
    #[must_use]
    pub(crate) fn has_shape(name: &str) -> bool {
        let is_base64url = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        name.strip_prefix(Self::PREFIX).is_some_and(|rest| rest.len() == 22 && rest.bytes().all(is_base64url))
    }

    /// The handle as a sender's name.
    #[must_use]
    pub(crate) fn sender_name(self) -> SenderName {
        SenderName(self.to_string().into())
    }
}

impl fmt::Display for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", Self::PREFIX, URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl Serialize for Handle {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl From<&SessionId> for UserId {
    fn from(session: &SessionId) -> Self {
        Self(Arc::clone(&session.0))
    }
}

impl From<&SessionId> for SenderName {
    fn from(session: &SessionId) -> Self {
        Self(Arc::clone(&session.0))
    }
}

impl From<&BackendName> for SenderName {
    fn from(backend: &BackendName) -> Self {
        Self(Arc::clone(&backend.0))
    }
}

impl From<&UserId> for SenderName {
    fn from(user: &UserId) -> Self {
        Self(Arc::clone(&user.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_is_read_back() {
        let handle = Handle([7; 16]);
        assert_eq!(handle.to_string(), "h-BwcHBwcHBwcHBwcHBwcHBw");
        assert_eq!(Handle::parse(&handle.to_string()), Some(handle));
        for other in ["", "h-", "h-BwcH", "x-BwcHBwcHBwcHBwcHBwcHBw", "h-BwcHBwcHBwcHBwcHBwcHBw=", "A"] {
            assert_eq!(Handle::parse(other), None, "{other}");
        }
    }

    #[test]
    fn nobody_takes_a_name_that_looks_like_a_handle() {
        for handle in [Handle([0; 16]), Handle([255; 16]), Handle([7; 16])] {
            assert_eq!(taken_name(&handle.to_string(), UserId::new), Err(NameError::Handle));
        }
        let not_canonical = format!("h-{}", "z".repeat(22));
        assert_eq!(taken_name(&not_canonical, SessionId::new), Err(NameError::Handle));
        for other in [
            "h-",
            "h-kiosk",
            "H-BwcHBwcHBwcHBwcHBwcHBw",
            "h-BwcHBwcHBwcHBwcHBwcHBw=",
            "h-BwcHBwcHBwcHBwcHBwcHB.",
        ] {
            assert_eq!(taken_name(other, SessionId::new), SessionId::new(other), "{other}");
        }
        assert_eq!(taken_name("", UserId::new), Err(NameError::Empty));
    }

    #[test]
    fn names_are_bounded() {
        assert_eq!(SessionId::new(""), Err(NameError::Empty));
        assert_eq!(SessionId::new(&"x".repeat(257)), Err(NameError::TooLong(257)));
        assert_eq!(SessionId::new("a\nb"), Err(NameError::Control));
        assert!(SessionId::new(&"x".repeat(256)).is_ok());
    }
}

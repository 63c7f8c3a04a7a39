//! Which broker a command talks to, and how it connects: over TLS too.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Args;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{CertificateError, Error as TlsError, InvalidMessage};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::error::{Error as WsError, ProtocolError};
use tokio_tungstenite::tungstenite::http::{HeaderValue, Uri, header};
use tokio_tungstenite::{WebSocketStream, client_async};
use tokio_util::either::Either;

use crate::protocol::SUBPROTOCOL;
use crate::tls;

/// How long the broker may take to answer.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// Which broker to talk to.
#[derive(Debug, Clone, Args)]
pub(super) struct Target {
    /// Address of the broker [default: ws://127.0.0.1:8080, or wss://127.0.0.1:8080 where X0_MSG_TLS_CERT is set]
    #[arg(long, env = "X0_MSG_SERVER", value_name = "URL")]
    server: Option<String>,
    /// File of certificates (PEM) to trust, instead of those of the system: of a CA, or the broker's own, as `openssl req -x509` makes one
    #[arg(long, value_name = "FILE", conflicts_with = "insecure")]
    ca: Option<PathBuf>,
    /// Accept every certificate. Whoever is in between reads what is sent, tokens too
    #[arg(long)]
    insecure: bool,
}

/// A stream to a broker.
pub(super) type Stream = Either<TcpStream, TlsStream<TcpStream>>;

/// A WebSocket to a broker.
pub(super) type Socket = WebSocketStream<Stream>;

/// When the certificate of the broker is verified.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Verify {
    /// Always.
    Always,
    /// Except on the loopback address: no certificate names it. For health checks only, which send no secret.
    NotLoopback,
}

/// Where the broker's WebSocket is.
#[derive(Debug, PartialEq, Eq)]
struct Endpoint {
    uri: Uri,
    /// Whether TLS is spoken there.
    secure: bool,
}

impl Endpoint {
    /// The address of `/ws` for a base address with any usual scheme, or without one.
    fn parse(base: &str) -> Result<Self> {
        let (scheme, rest) = base.trim().split_once("://").unwrap_or(("ws", base.trim()));
        let (scheme, secure) = match scheme.to_ascii_lowercase().as_str() {
            "ws" | "http" => ("ws", false),
            "wss" | "https" => ("wss", true),
            other => bail!("--server must begin with ws://, wss://, http:// or https://, not {other}://"),
        };
        let rest = rest.trim_end_matches('/').trim_end_matches("/ws");
        ensure!(!rest.contains(['@', '?', '#']), "--server must have no user name, no query and no fragment");
        let uri: Uri = format!("{scheme}://{rest}/ws").parse().context("--server is not an address")?;
        let host = uri.host().unwrap_or_default();
        ensure!(!host.is_empty(), "--server names no host");
        let port = uri.authority().and_then(|authority| authority.as_str().strip_prefix(host));
        let port_is_valid = matches!(port, Some("" | ":")) || uri.port_u16().is_some();
        ensure!(port_is_valid, "--server names no port: it is a number from 0 to 65535");
        Ok(Self { uri, secure })
    }

    /// The host, an address of IPv6 without its brackets, and the port.
    fn host_and_port(&self) -> Result<(&str, u16)> {
        let host = self.uri.host().context("--server names no host")?;
        let port = self.uri.port_u16().unwrap_or(if self.secure { 443 } else { 80 });
        Ok((host.trim_start_matches('[').trim_end_matches(']'), port))
    }
}

impl Target {
    fn endpoint(&self) -> Result<Endpoint> {
        let default = match std::env::var_os("X0_MSG_TLS_CERT") {
            Some(_) => "wss://127.0.0.1:8080",
            None => "ws://127.0.0.1:8080",
        };
        Endpoint::parse(self.server.as_deref().unwrap_or(default))
    }

    /// Host and port, as in an address.
    pub(super) fn authority(&self) -> Result<String> {
        let endpoint = self.endpoint()?;
        Ok(endpoint.uri.authority().map(ToString::to_string).unwrap_or_default())
    }

    /// Opens a connection.
    pub(super) async fn stream(&self, verify: Verify) -> Result<Stream> {
        let endpoint = self.endpoint()?;
        let (host, port) = endpoint.host_and_port()?;
        let stream = TcpStream::connect((host, port)).await.map_err(|error| {
            let text = format!("{error}; is the broker running, and does --server name it?");
            anyhow::Error::from(io::Error::new(error.kind(), text))
        })?;
        if !endpoint.secure {
            return Ok(Either::Left(stream));
        }
        let unverified = verify == Verify::NotLoopback && stream.peer_addr()?.ip().is_loopback();
        let config = match &self.ca {
            Some(ca) => tls::client_config_of(ca),
            None if unverified || self.insecure => tls::unverified_client_config(),
            None => tls::client_config(),
        };
        let config = config.map_err(|reason| anyhow!("cannot speak TLS: {reason}"))?;
        let name = ServerName::try_from(host.to_owned()).context("--server names no host")?;
        let stream = TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await
            .map_err(|error| tls_error(&error))?;
        Ok(Either::Right(stream))
    }

    /// Opens a WebSocket.
    pub(super) async fn connect(&self) -> Result<Socket> {
        let uri = self.endpoint()?.uri;
        let mut request = uri.clone().into_client_request().context("--server is not an address")?;
        request.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
        let connect = async {
            let stream = self.stream(Verify::Always).await?;
            let (socket, _) = client_async(request, stream).await.map_err(handshake_error)?;
            Ok::<_, anyhow::Error>(socket)
        };
        let connected = timeout(ANSWER_TIMEOUT, connect).await;
        connected
            .map_err(|_| anyhow!("no answer within {} s", ANSWER_TIMEOUT.as_secs()))
            .and_then(|connected| connected)
            .with_context(|| format!("cannot connect to {uri}"))
    }
}

/// Why TLS cannot be spoken, and what helps where that is known.
fn tls_error(error: &io::Error) -> anyhow::Error {
    let advice = match error.get_ref().and_then(|inner| inner.downcast_ref()) {
        Some(TlsError::InvalidCertificate(
            CertificateError::UnknownIssuer
            | CertificateError::BadSignature
            | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. },
        )) => "; --ca names a file of certificates to trust",
        Some(TlsError::InvalidCertificate(error)) if tls::is_ca_as_server(error) => {
            "; the certificate of the server is that of a CA: --ca names a file with it"
        }
        Some(TlsError::InvalidMessage(InvalidMessage::InvalidContentType)) => {
            "; a server without TLS has an address with ws:// or http://"
        }
        _ => "",
    };
    anyhow!("cannot speak TLS: {error}{advice}")
}

/// What helps where the answer is not HTTP.
pub(super) const NOT_HTTP: &str = "; a server with TLS has an address with wss:// or https://";

/// Why a handshake failed: what the broker says, if it has refused it.
fn handshake_error(error: WsError) -> anyhow::Error {
    let response = match &error {
        WsError::Http(response) => response,
        WsError::Protocol(ProtocolError::HttparseError(_)) => return anyhow!("{error}{NOT_HTTP}"),
        _ => return error.into(),
    };
    match response.body().as_deref().and_then(refusal_text) {
        Some(text) => anyhow!("{}: {text}", response.status()),
        None => error.into(),
    }
}

fn refusal_text(body: &[u8]) -> Option<String> {
    let body: serde_json::Value = serde_json::from_slice(body).ok()?;
    body["error"]["message"].as_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use tokio_rustls::rustls::OtherError;

    use super::*;

    #[test]
    fn a_refusal_of_a_handshake_says_what_the_broker_says() {
        let body = br#"{"error":{"code":"forbidden","message":"not this host; --host allows it"}}"#;
        assert_eq!(refusal_text(body).as_deref(), Some("not this host; --host allows it"));
        for other in [&b""[..], b"<html>", b"{}", br#"{"error":"x"}"#] {
            assert_eq!(refusal_text(other), None);
        }
    }

    #[test]
    fn an_error_of_tls_has_advice_where_that_helps() {
        let text =
            |error: TlsError| tls_error(&io::Error::new(io::ErrorKind::InvalidData, error)).to_string();
        let unknown = TlsError::InvalidCertificate(CertificateError::UnknownIssuer);
        assert_eq!(
            text(unknown),
            "cannot speak TLS: invalid peer certificate: UnknownIssuer; --ca names a file of certificates to trust"
        );
        let ca = OtherError(Arc::new(io::Error::other("CaUsedAsEndEntity")));
        assert!(
            text(TlsError::InvalidCertificate(CertificateError::Other(ca)))
                .contains("--ca names a file with it")
        );
        assert!(text(TlsError::InvalidMessage(InvalidMessage::InvalidContentType)).contains("ws://"));
        for other in [
            TlsError::InvalidCertificate(CertificateError::Expired),
            TlsError::InvalidCertificate(CertificateError::NotValidForName),
            TlsError::HandshakeNotComplete,
        ] {
            assert!(!text(other.clone()).contains(';'), "{other}");
        }
        let closed = tls_error(&io::ErrorKind::UnexpectedEof.into()).to_string();
        assert!(!closed.contains("--ca"), "{closed}");
    }

    #[test]
    fn any_usual_scheme_names_the_websocket() {
        for (base, uri, secure) in [
            ("ws://127.0.0.1:8080", "ws://127.0.0.1:8080/ws", false),
            ("http://localhost:8080/", "ws://localhost:8080/ws", false),
            ("https://msg.example", "wss://msg.example/ws", true),
            ("wss://msg.example/ws", "wss://msg.example/ws", true),
            ("msg.example:9000", "ws://msg.example:9000/ws", false),
            ("wss://msg.example/broker/", "wss://msg.example/broker/ws", true),
            (" WSS://msg.example:443 ", "wss://msg.example:443/ws", true),
            ("http://[::1]:8080", "ws://[::1]:8080/ws", false),
        ] {
            let expected = Endpoint { uri: uri.parse().unwrap(), secure };
            assert_eq!(Endpoint::parse(base).unwrap(), expected, "{base}");
        }
    }

    #[test]
    fn other_schemes_and_addresses_are_refused() {
        for (base, reason) in [
            ("ftp://msg.example", "must begin with ws://"),
            ("ws://a b", "not an address"),
            ("", "--server"),
            ("ws://", "--server"),
            ("ws://:80", "names no host"),
            ("ws://msg.example:99999", "names no port"),
            ("ws://msg.example:x", "--server"),
            ("ws://user:secret@msg.example", "no user name"),
            ("ws://msg.example/?session=A", "no query"),
            ("ws://msg.example#x", "no fragment"),
        ] {
            let error = Endpoint::parse(base).unwrap_err();
            assert!(format!("{error:#}").contains(reason), "{base}: {error:#}");
        }
    }

    #[test]
    fn the_port_follows_from_the_scheme() {
        for (base, host, port) in [
            ("ws://msg.example", "msg.example", 80),
            ("wss://msg.example", "msg.example", 443),
            ("wss://[::1]:8443", "::1", 8443),
        ] {
            assert_eq!(Endpoint::parse(base).unwrap().host_and_port().unwrap(), (host, port), "{base}");
        }
    }
}

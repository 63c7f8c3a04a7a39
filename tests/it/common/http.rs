//! An HTTP/1.1 client on one connection.

use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::HeaderMap;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::task::AbortHandle;

use super::soon;

/// The answer to a request.
#[derive(Debug, Clone)]
pub struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: String,
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("not JSON: {}", self.body))
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// The payloads of a native poll's messages.
    pub fn payloads(&self) -> Vec<Value> {
        self.json()["messages"].as_array().unwrap().iter().map(|m| m["payload"].clone()).collect()
    }

    /// The code of an error, which must have a text.
    pub fn code(&self) -> String {
        let error = self.json()["error"].clone();
        assert!(error["message"].as_str().is_some_and(|text| text.len() > 10), "{error}");
        error["code"].as_str().unwrap().to_owned()
    }
}

/// One HTTP/1.1 connection, closed when dropped.
pub struct Http {
    sender: SendRequest<Full<Bytes>>,
    connection: AbortHandle,
    authority: String,
}

impl Http {
    pub async fn connect(address: SocketAddr) -> Self {
        Self::on(soon(TcpStream::connect(address)).await.unwrap(), &address.to_string()).await
    }

    pub async fn on(
        stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
        authority: &str,
    ) -> Self {
        let (sender, connection) = handshake(TokioIo::new(stream)).await.unwrap();
        let connection = tokio::spawn(async move { _ = connection.await }).abort_handle();
        Self { sender, connection, authority: authority.to_owned() }
    }

    pub async fn try_request(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> hyper::Result<Reply> {
        let mut request =
            hyper::Request::builder().method(method).uri(target).header("host", &self.authority);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self.sender.send_request(request.body(Full::new(body.into())).unwrap()).await?;
        let (parts, body) = response.into_parts();
        let body = body.collect().await?.to_bytes().to_vec();
        let body = String::from_utf8(body).expect("answers are UTF-8");
        Ok(Reply { status: parts.status.as_u16(), headers: parts.headers, body })
    }

    pub async fn request(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Reply {
        soon(self.try_request(method, target, headers, body)).await.unwrap()
    }

    pub async fn get(&mut self, target: &str) -> Reply {
        self.request("GET", target, &[], "").await
    }

    pub async fn post(&mut self, target: &str, body: impl ToString) -> Reply {
        self.request("POST", target, &[("content-type", "application/json")], body.to_string()).await
    }
}

impl Http {
    /// Closes the connection. Returns once the socket is closed.
    pub async fn close(self) {
        let connection = self.connection.clone();
        drop(self);
        soon(async {
            while !connection.is_finished() {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
}

impl Drop for Http {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

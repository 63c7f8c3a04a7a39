//! An HTTP/1.1 client on one connection.

use anyhow::Result;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio_util::task::AbortOnDropHandle;

use crate::broker::Broker;

/// One connection, and the bearer of its requests.
pub(crate) struct Http {
    sender: SendRequest<Full<Bytes>>,
    bearer: Option<String>,
    _connection: AbortOnDropHandle<()>,
}

impl Http {
    pub(crate) async fn connect(broker: &Broker, from: &str, bearer: Option<String>) -> Result<Self> {
        let (sender, connection) = handshake(TokioIo::new(broker.connect(from, "http/1.1").await?)).await?;
        let connection = AbortOnDropHandle::new(tokio::spawn(async move { _ = connection.await }));
        Ok(Self { sender, bearer, _connection: connection })
    }

    /// One call; its status and body.
    pub(crate) async fn call(
        &mut self,
        method: &str,
        target: &str,
        body: impl Into<Bytes>,
    ) -> Result<(u16, Value)> {
        let mut request = Request::builder().method(method).uri(target).header("host", "localhost");
        request = request.header("content-type", "application/json");
        if let Some(bearer) = &self.bearer {
            request = request.header("authorization", format!("Bearer {bearer}"));
        }
        self.sender.ready().await?;
        let answer = self.sender.send_request(request.body(Full::new(body.into()))?).await?;
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await?.to_bytes();
        Ok((status, serde_json::from_slice(&body).unwrap_or_default()))
    }
}

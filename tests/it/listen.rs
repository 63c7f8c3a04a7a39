//! `--listen`: addresses and their short forms.

use std::net::{IpAddr, SocketAddr};

use tokio::net::TcpListener;

use crate::common::*;

const WARNING: &str = "opens this broker to other machines";

/// A server with this `--listen` is reached at both loopback addresses; whether it warns.
async fn warns(listen: &str) -> bool {
    let server = TestServer::with(&["--listen", listen]).await;
    let mut loopback: Vec<IpAddr> = vec!["127.0.0.1".parse().unwrap()];
    // This machine may have no IPv6.
    if TcpListener::bind("[::1]:0").await.is_ok() {
        loopback.push("::1".parse().unwrap());
    }
    for ip in loopback {
        let mut http = Http::connect(SocketAddr::from((ip, server.address.port()))).await;
        assert_eq!(http.get("/healthz").await.status, 200, "{listen} at {ip}");
    }
    server.stop().await.contains(WARNING)
}

#[tokio::test]
async fn localhost_is_both_loopback_addresses() {
    assert!(!warns("localhost:0").await);
}

#[tokio::test]
async fn a_port_alone_is_both_loopback_addresses() {
    assert!(!warns("0").await);
}

#[tokio::test]
async fn a_colon_and_a_port_is_all_addresses_and_warns() {
    assert!(warns(":0").await);
}

#[tokio::test]
async fn other_names_are_refused_with_the_forms_that_work() {
    let text = command(&["--listen", "msg.example:8080"]).unwrap_err();
    assert!(text.contains("--listen") && text.contains("localhost:8080"), "{text}");
}

//! A blocking HTTP/1.1 client on one connection.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

pub(crate) struct Http(BufReader<TcpStream>);

impl Http {
    pub(crate) fn connect(address: &str) -> Self {
        let stream = TcpStream::connect(address).expect("the server listens");
        stream.set_nodelay(true).expect("a TCP socket");
        Self(BufReader::new(stream))
    }

    /// Sends a request and does not wait for its answer.
    pub(crate) fn request(&mut self, method: &str, target: &str, body: &str) {
        let head = format!(
            "{method} {target} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        self.0.get_mut().write_all((head + body).as_bytes()).expect("connected");
    }

    /// Waits for the answer to the oldest request that has none; its body.
    pub(crate) fn answer(&mut self) -> String {
        let mut length = 0;
        loop {
            let mut line = String::new();
            self.0.read_line(&mut line).expect("connected");
            if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().expect("a number");
            }
            if line == "\r\n" {
                break;
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).expect("connected");
        String::from_utf8(body).expect("JSON is UTF-8")
    }
}

//! The control socket as any program would use it: HTTP/1.1 over a Unix socket, one connection a request.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::Value;

use super::PATIENCE;

/// A reply.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Reply {
    /// Its body, which is JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

fn connect(data: &Path) -> io::Result<UnixStream> {
    let stream = UnixStream::connect(data.join("control.sock"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// `GET path`.
///
/// # Errors
/// If the node goes away before its reply is complete.
pub(crate) fn get(data: &Path, path: &str) -> io::Result<Reply> {
    request(data, &format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"))
}

/// `POST path`.
///
/// # Errors
/// As [`get`].
pub(crate) fn post(data: &Path, path: &str, body: &Value) -> io::Result<Reply> {
    let body = body.to_string();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    );
    request(data, &(head + &body))
}

fn request(data: &Path, bytes: &str) -> io::Result<Reply> {
    let mut stream = connect(data)?;
    stream.write_all(bytes.as_bytes())?;
    let mut whole = String::new();
    stream.read_to_string(&mut whole)?;
    let cut_short = || io::Error::from(io::ErrorKind::UnexpectedEof);
    let (head, body) = whole.split_once("\r\n\r\n").ok_or_else(cut_short)?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(cut_short)?;
    let length = header(head, "content-length").and_then(|length| length.parse::<usize>().ok());
    if length.is_some_and(|length| length != body.len()) {
        return Err(cut_short());
    }
    Ok(Reply { status, head: head.to_owned(), body: body.to_owned() })
}

/// The value of a header.
pub(crate) fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| {
        let (found, value) = line.split_once(':')?;
        found.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

/// The events of a node from its first on, for as long as it runs.
pub(crate) fn follow(data: &Path) -> EventStream {
    let mut stream = connect(data).expect("the node listens");
    stream
        .write_all(b"GET /v1/events?follow=true&since=0 HTTP/1.1\r\nhost: localhost\r\n\r\n")
        .expect("the node reads");
    // Between two events any time may pass.
    stream.set_read_timeout(None).expect("a setting of the socket");
    let mut stream = EventStream { stream: BufReader::new(stream), buffer: Vec::new() };
    while stream.line().is_some_and(|line| !line.is_empty()) {}
    stream
}

/// NDJSON in chunks.
pub(crate) struct EventStream {
    stream: BufReader<UnixStream>,
    buffer: Vec<u8>,
}

impl EventStream {
    fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        let read = self.stream.read_line(&mut line).ok()?;
        (read > 0).then(|| line.trim_end().to_owned())
    }

    /// The next event; `None` when the node has stopped.
    pub(crate) fn next_row(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return serde_json::from_slice(&line).ok();
            }
            let length = usize::from_str_radix(&self.line()?, 16).ok().filter(|length| *length > 0)?;
            let mut chunk = vec![0; length + 2];
            self.stream.read_exact(&mut chunk).ok()?;
            self.buffer.extend_from_slice(&chunk[..length]);
        }
    }
}

//! The control API's client: what a command uses to speak to a running node.
//!
//! One connection for each request, or stream. [`ConnectError::NoNode`] means that nobody listens, which is for the
//! caller to go on from; [`CallError::Lost`] that the node went away before it answered, so that the caller may ask
//! again with the same operation id. Everything else is an error for the operator.
//!
//! Not here: what to do without a node (`commands::backend`).

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::api::{ApiError, ErrorCode, ErrorReply, EventRow, Versioned};
use super::socket::{DATA_DIR_HEADER, header_of};

/// Longest reply: a million peers of 400 bytes.
const REPLY_BYTES_MAX: usize = 512 * 1024 * 1024;
/// Longest line of a stream.
const LINE_BYTES_MAX: usize = 64 * 1024;
/// How long an answer may take that waits for nothing but the disk; the node gives up after 5 s itself.
pub const REPLY_TIMEOUT: Duration = Duration::from_secs(30);

/// Why there is no connection.
#[derive(Debug, PartialEq, Eq)]
pub enum ConnectError {
    /// Nobody listens: there is no socket, or a dead one.
    NoNode,
    /// The node has no room at this moment.
    Busy,
    /// It cannot be reached for another reason.
    Failed(ApiError),
}

/// Why there is no reply.
#[derive(Debug, PartialEq, Eq)]
pub enum CallError {
    /// The connection ended before the reply: the request may or may not have been heard.
    Lost,
    /// The node's error, or one of the conversation.
    Failed(ApiError),
}

impl From<ApiError> for CallError {
    fn from(error: ApiError) -> CallError {
        CallError::Failed(error)
    }
}

/// A connection to a running node.
#[derive(Debug)]
pub struct Client {
    sender: SendRequest<Full<Bytes>>,
    data_dir: String,
    socket: PathBuf,
}

impl Client {
    /// Connects to the node of `data_dir`.
    ///
    /// # Errors
    /// As [`ConnectError`] says.
    pub async fn connect(socket: &Path, data_dir: &Path) -> Result<Client, ConnectError> {
        let stream = UnixStream::connect(socket).await.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ConnectError::NoNode,
            io::ErrorKind::WouldBlock => ConnectError::Busy,
            _ => ConnectError::Failed(unreachable_node(socket, &error)),
        })?;
        // The handshake of HTTP/1 says nothing yet: it fails with the connection alone.
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|_| ConnectError::NoNode)?;
        tokio::spawn(connection);
        Ok(Client { sender, data_dir: header_of(data_dir), socket: socket.to_path_buf() })
    }

    /// `GET path`.
    ///
    /// # Errors
    /// As [`CallError`] says.
    pub async fn get<T: DeserializeOwned>(self, path: &str) -> Result<T, CallError> {
        self.call(Method::GET, path, Bytes::new(), REPLY_TIMEOUT).await
    }

    /// `POST path`; the answer may take `timeout`.
    ///
    /// # Errors
    /// As [`CallError`] says.
    pub async fn post<Q: Serialize, T: DeserializeOwned>(
        self,
        path: &str,
        request: &Q,
        timeout: Duration,
    ) -> Result<T, CallError> {
        let body = serde_json::to_vec(request)
            .map_err(|error| ApiError::new(ErrorCode::Failure, format!("The request cannot be written: {error}.")))?;
        self.call(Method::POST, path, Bytes::from(body), timeout).await
    }

    /// Follows the events after number `since`, or all that are kept.
    ///
    /// # Errors
    /// As [`CallError`] says; `NotFound` if they are no longer kept.
    pub async fn events(mut self, since: Option<u64>, follow: bool) -> Result<Events, CallError> {
        let since = since.map(|since| format!("&since={since}")).unwrap_or_default();
        let path = format!("/v1/events?follow={follow}{since}");
        let response = within(REPLY_TIMEOUT, self.send(Method::GET, &path, Bytes::new())).await?;
        if response.status() != StatusCode::OK {
            return Err(error_of(response.status(), &collect(response).await?).into());
        }
        Ok(Events { _sender: self.sender, body: response.into_body(), buffer: Vec::new() })
    }

    async fn call<T: DeserializeOwned>(
        mut self,
        method: Method,
        path: &str,
        body: Bytes,
        timeout: Duration,
    ) -> Result<T, CallError> {
        let exchange = async {
            let response = self.send(method, path, body).await?;
            let status = response.status();
            Ok((status, collect(response).await?))
        };
        let (status, bytes) = within(timeout, exchange).await?;
        if status != StatusCode::OK {
            return Err(error_of(status, &bytes).into());
        }
        let reply: Versioned<T> = serde_json::from_slice(&bytes).map_err(|_| not_understood("its reply"))?;
        Ok(reply.body)
    }

    async fn send(&mut self, method: Method, path: &str, body: Bytes) -> Result<Response<Incoming>, CallError> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "localhost")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| ApiError::new(ErrorCode::Failure, format!("The request cannot be written: {error}.")))?;
        let response = self.sender.send_request(request).await.map_err(|error| {
            if error.is_parse() { CallError::Failed(not_understood("what it says")) } else { CallError::Lost }
        })?;
        if response.status() == StatusCode::FORBIDDEN && response.headers().get(DATA_DIR_HEADER).is_none() {
            let error = ApiError::new(ErrorCode::Refused, "The node does not speak to this user.");
            return Err(error.hint("run as the user of the node, or as root").into());
        }
        let named = response.headers().get(DATA_DIR_HEADER).map(|value| value.as_bytes());
        if named != Some(self.data_dir.as_bytes()) {
            let message = format!("The node at {} is of another data directory.", self.socket.display());
            return Err(ApiError::new(ErrorCode::Failure, message)
                .hint("the directory was moved or copied while its node ran: stop that node first")
                .into());
        }
        Ok(response)
    }
}

/// A stream of events.
#[derive(Debug)]
pub struct Events {
    /// Keeps the connection: hyper ends it with its last sender.
    _sender: SendRequest<Full<Bytes>>,
    body: Incoming,
    buffer: Vec<u8>,
}

impl Events {
    /// The next event; `None` when the node has ended the stream.
    ///
    /// # Errors
    /// [`CallError::Lost`] if the node went away, otherwise what it says.
    pub async fn next(&mut self) -> Result<Option<EventRow>, CallError> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return event_of(&line).map(Some);
            }
            if self.buffer.len() > LINE_BYTES_MAX {
                return Err(not_understood("a line of its events").into());
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(_)) => return Err(CallError::Lost),
                Some(Ok(frame)) => self.buffer.extend_from_slice(frame.data_ref().unwrap_or(&Bytes::new())),
            }
        }
    }
}

fn event_of(line: &[u8]) -> Result<EventRow, CallError> {
    if let Ok(row) = serde_json::from_slice::<Versioned<EventRow>>(line) {
        return Ok(row.body);
    }
    let reply = serde_json::from_slice::<Versioned<ErrorReply>>(line);
    Err(reply.map_or_else(|_| not_understood("a line of its events"), |reply| reply.body.error).into())
}

async fn within<T>(timeout: Duration, call: impl Future<Output = Result<T, CallError>>) -> Result<T, CallError> {
    tokio::time::timeout(timeout, call).await.unwrap_or_else(|_| {
        let error =
            ApiError::new(ErrorCode::TimedOut, format!("The node has not answered for {} s.", timeout.as_secs()));
        Err(error.hint("`handfast status` shows whether it is well; what was asked may still happen").into())
    })
}

async fn collect(response: Response<Incoming>) -> Result<Bytes, CallError> {
    match Limited::new(response.into_body(), REPLY_BYTES_MAX).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(not_understood("a reply that long").into()),
        Err(_) => Err(CallError::Lost),
    }
}

fn error_of(status: StatusCode, body: &[u8]) -> ApiError {
    serde_json::from_slice::<Versioned<ErrorReply>>(body)
        .map_or_else(|_| not_understood(&format!("its answer {status}")), |reply| reply.body.error)
}

fn not_understood(what: &str) -> ApiError {
    ApiError::new(ErrorCode::Failure, format!("The node does not speak as expected: {what} is not understood."))
        .hint("the node may run another version: restart it with this one")
}

fn unreachable_node(socket: &Path, error: &io::Error) -> ApiError {
    ApiError::new(ErrorCode::Failure, format!("Cannot connect to {}: {error}.", socket.display()))
        .hint("run as the user of the node, or as root")
}

//! Who carries out a request: the node of the directory if one runs, else this process alone, under the lock.
//!
//! Socket and lock are tried in turn for up to 15 s, so that a command works while a node starts, runs or stops, and
//! while other commands are at it. Alone, the same [`Operator`] acts on the same stores with the same rules.
//!
//! Invariant: a request that got lost together with its node is asked again with the same operation id; one that was
//! answered, or whose time was up, is not.
//!
//! Not here: the conversation (`control::client`), what the requests do (`operations`).

use std::path::PathBuf;
use std::time::Duration;

use handfast_trust::{DirectoryLock, LockError, LockOwner};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, Interval};

use super::Context;
use super::lock::{COMMAND_PATIENCE, myself, ticks};
use crate::config::Config;
use crate::control::api::{ApiError, ErrorCode};
use crate::control::client::{CallError, Client, ConnectError, REPLY_TIMEOUT};
use crate::data_dir::{Access, DataDir};
use crate::operations::Operator;

/// What a running node is asked.
pub(super) enum Call<'a, Q> {
    Get(String),
    Post { path: &'static str, request: &'a Q, timeout: Duration },
}

impl Call<'_, ()> {
    pub(super) fn get(path: impl Into<String>) -> Call<'static, ()> {
        Call::Get(path.into())
    }
}

impl<Q> Call<'_, Q> {
    pub(super) fn post<'a>(path: &'static str, request: &'a Q) -> Call<'a, Q> {
        Call::Post { path, request, timeout: REPLY_TIMEOUT }
    }
}

/// The data directory of a command and the ways to reach it.
pub(super) struct Backend {
    pub(super) directory: DataDir,
    config: Config,
    socket: PathBuf,
    role: &'static str,
    end: Instant,
    ticks: Interval,
}

/// Who was reached.
pub(super) enum Reached {
    Node(Client),
    Alone(DirectoryLock),
}

impl Backend {
    /// `role` is the name of the command, for whoever finds the directory locked.
    pub(super) fn new(context: &Context<'_>, role: &'static str) -> Result<Backend, ApiError> {
        let directory = context.directory(Access::Look)?;
        let config = context.configuration(Some(&directory), &[])?;
        let socket = directory.control_socket(|name| std::env::var_os(name))?;
        Ok(Backend { directory, config, socket, role, end: Instant::now() + COMMAND_PATIENCE, ticks: ticks() })
    }

    /// Has the request carried out by whoever can.
    pub(super) async fn ask<Q: Serialize, T: DeserializeOwned>(
        &mut self,
        call: Call<'_, Q>,
        alone: impl AsyncFnOnce(&Operator) -> Result<T, ApiError>,
    ) -> Result<T, ApiError> {
        loop {
            match self.reach().await? {
                Reached::Node(client) => match ask_node(client, &call).await {
                    Ok(reply) => return Ok(reply),
                    Err(CallError::Failed(error)) => return Err(error),
                    Err(CallError::Lost) if Instant::now() < self.end => {}
                    Err(CallError::Lost) => return Err(lost()),
                },
                Reached::Alone(lock) => {
                    let operator = Operator::open_alone(&self.directory, &self.config, lock)?;
                    let reply = alone(&operator).await;
                    // What was changed is on the disk when this returns; an error here is greater than a reply.
                    let closed = operator.close_alone();
                    return reply.and_then(|reply| closed.map(|()| reply));
                }
            }
        }
    }

    /// Has the request carried out by a running node.
    pub(super) async fn ask_node<Q: Serialize, T: DeserializeOwned>(
        &mut self,
        call: Call<'_, Q>,
        why: &str,
    ) -> Result<T, ApiError> {
        loop {
            match ask_node(self.node(why).await?, &call).await {
                Ok(reply) => return Ok(reply),
                Err(CallError::Failed(error)) => return Err(error),
                Err(CallError::Lost) if Instant::now() < self.end => {}
                Err(CallError::Lost) => return Err(lost()),
            }
        }
    }

    /// A running node. `why` one is needed, for when there is none.
    pub(super) async fn node(&mut self, why: &str) -> Result<Client, ApiError> {
        match self.reach().await? {
            Reached::Node(client) => Ok(client),
            Reached::Alone(_) => {
                let message = format!("No node is running on {}, and {why}.", self.directory.path().display());
                Err(ApiError::new(ErrorCode::NoNode, message).hint("start one: handfast run"))
            }
        }
    }

    /// The node of the directory, or its lock.
    pub(super) async fn reach(&mut self) -> Result<Reached, ApiError> {
        loop {
            self.ticks.tick().await;
            let busy = match Client::connect(&self.socket, self.directory.path()).await {
                Ok(client) => return Ok(Reached::Node(client)),
                Err(ConnectError::Failed(error)) => return Err(error),
                Err(ConnectError::Busy) => true,
                Err(ConnectError::NoNode) => false,
            };
            let owner = if busy { None } else { self.try_lock()? };
            match owner {
                Some(Ok(lock)) => return Ok(Reached::Alone(lock)),
                Some(Err(owner)) if Instant::now() >= self.end => return Err(LockError::Held(owner).into()),
                None if Instant::now() >= self.end => {
                    let error = ApiError::new(ErrorCode::TryAgain, "The node has no room for another connection.");
                    return Err(error.hint("end some of the programs that follow its events"));
                }
                _ => {}
            }
        }
    }

    /// The lock, or who has it.
    fn try_lock(&self) -> Result<Option<Result<DirectoryLock, LockOwner>>, ApiError> {
        if self.directory.is_foreign() {
            let message = format!("No node is running on {}.", self.directory.path().display());
            let error = ApiError::new(ErrorCode::NoNode, message);
            return Err(error.hint("without a node only the owner of the directory may use it"));
        }
        match DirectoryLock::try_acquire(self.directory.path(), &myself(self.role)) {
            Ok(lock) => Ok(Some(Ok(lock))),
            Err(LockError::Held(owner)) => Ok(Some(Err(owner))),
            Err(error) => Err(error.into()),
        }
    }
}

async fn ask_node<Q: Serialize, T: DeserializeOwned>(client: Client, call: &Call<'_, Q>) -> Result<T, CallError> {
    match call {
        Call::Get(path) => client.get(path).await,
        Call::Post { path, request, timeout } => client.post(path, request, *timeout).await,
    }
}

fn lost() -> ApiError {
    let error = ApiError::new(ErrorCode::TryAgain, "The node went away before it answered.");
    error.hint("see its log; what was asked may have been done: `handfast peers` shows it")
}

/// Text as one value of a query: everything but letters, digits and a few signs is percent-encoded.
pub(super) fn query_value(text: &str) -> String {
    let mut value = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => value.push(char::from(byte)),
            _ => value.push_str(&format!("%{byte:02X}")),
        }
    }
    value
}

/// An id for a change, so that asking again after a lost reply does not change twice.
pub(super) fn operation_id() -> String {
    data_encoding::HEXLOWER.encode(&rand::random::<[u8; 16]>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_hold_any_text() {
        assert_eq!(query_value("build-server_1.a"), "build-server_1.a");
        assert_eq!(query_value("did:key:z&ä +"), "did%3Akey%3Az%26%C3%A4%20%2B");
    }

    #[test]
    fn operation_ids_differ() {
        assert_eq!(operation_id().len(), 32);
        assert_ne!(operation_id(), operation_id());
    }
}

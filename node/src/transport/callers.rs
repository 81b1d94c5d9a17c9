//! Dialling as many: a few endpoints, and for each connection another identity. For load tests, which simulate
//! thousands of peers: an endpoint costs 1.5-2 ms to make, an identity and its TLS settings about 30 us.
//!
//! Invariants: as for every dial (`transport`): the other end must prove the key that was dialled, nothing is resumed,
//! and the QUIC settings are a node's own.
//!
//! Not here: what is said on the connections (`storm`).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use handfast_protocol::{CloseCode, PeerId, SecretKey};
use quinn::{AsyncUdpSocket, EndpointConfig, Runtime, TokioRuntime, TransportConfig, VarInt};
use rustls::crypto::CryptoProvider;

use super::ending::{DialError, TransportError};
use super::tls::{self, Found, Tls};
use super::{TransportSettings, quic_settings, socket};

/// Endpoints that only dial. Clones share them.
#[derive(Debug, Clone)]
pub struct Callers {
    endpoints: Vec<quinn::Endpoint>,
    quic: Arc<TransportConfig>,
    provider: Arc<CryptoProvider>,
}

/// Somebody who dials one peer, perhaps again: what TLS needs for it.
#[derive(Clone)]
pub struct Caller {
    config: quinn::ClientConfig,
    name: String,
    found: Found,
}

impl Callers {
    /// Binds an endpoint to each address. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// The first address that could not be bound, and why.
    pub fn bind(from: &[SocketAddr], settings: &TransportSettings) -> Result<Callers, TransportError> {
        Callers::bind_through(from, settings, |socket| socket)
    }

    /// As [`Callers::bind`], with every socket behind what `wrap` makes of it.
    ///
    /// # Errors
    /// As [`Callers::bind`].
    pub fn bind_through(
        from: &[SocketAddr],
        settings: &TransportSettings,
        wrap: impl Fn(Arc<dyn AsyncUdpSocket>) -> Arc<dyn AsyncUdpSocket>,
    ) -> Result<Callers, TransportError> {
        let runtime = Arc::new(TokioRuntime);
        let mut endpoints = Vec::with_capacity(from.len());
        for bound in socket::bind_all(from, settings.socket_buffer_bytes)? {
            let failed = |source| TransportError::Socket { address: bound.local, source };
            let socket = wrap(runtime.wrap_udp_socket(bound.socket).map_err(failed)?);
            let config = EndpointConfig::default();
            let endpoint = quinn::Endpoint::new_with_abstract_socket(config, None, socket, runtime.clone());
            endpoints.push(endpoint.map_err(failed)?);
        }
        Ok(Callers {
            endpoints,
            quic: Arc::new(quic_settings(settings)),
            provider: tls::provider(settings.key_exchange),
        })
    }

    /// How many endpoints there are.
    pub fn count(&self) -> usize {
        self.endpoints.len()
    }

    /// Whoever has `key`, and dials `peer`.
    ///
    /// # Errors
    /// [`DialError::Tls`]: a bug.
    pub fn caller(&self, key: &SecretKey, peer: &PeerId) -> Result<Caller, DialError> {
        let found = Found::default();
        let mut config = quinn::ClientConfig::new(Tls::with_provider(key, self.provider.clone()).client(peer, &found)?);
        config.transport_config(Arc::clone(&self.quic));
        config.token_store(Arc::new(quinn::NoneTokenStore));
        Ok(Caller { config, name: peer.to_string(), found })
    }

    /// Connects as whoever has `key` to `peer`, from endpoint `from` (counted round).
    ///
    /// # Errors
    /// As for a node's own dial.
    pub async fn dial(
        &self,
        from: usize,
        key: &SecretKey,
        peer: &PeerId,
        at: SocketAddr,
        deadline: Duration,
    ) -> Result<quinn::Connection, DialError> {
        self.dial_as(from, &self.caller(key, peer)?, at, deadline).await
    }

    /// Connects as `caller`, from endpoint `from` (counted round).
    ///
    /// # Errors
    /// As for a node's own dial.
    pub async fn dial_as(
        &self,
        from: usize,
        caller: &Caller,
        at: SocketAddr,
        deadline: Duration,
    ) -> Result<quinn::Connection, DialError> {
        let endpoint = self.endpoints.get(from % self.endpoints.len().max(1)).ok_or(DialError::Stopping)?;
        let connecting = endpoint.connect_with(caller.config.clone(), at, &caller.name)?;
        match tokio::time::timeout(deadline, connecting).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) => Err(caller.found.key().map_or_else(|| DialError::of(&error), DialError::wrong_key)),
            Err(_elapsed) => Err(DialError::TimedOut),
        }
    }

    /// Closes every connection with this code.
    pub fn close(&self, code: CloseCode) {
        for endpoint in &self.endpoints {
            endpoint.close(VarInt::from_u32(code.code()), b"");
        }
    }

    /// Returns when the ends of all connections have been told, or have been waited for long enough.
    pub async fn wait_idle(&self) {
        for endpoint in &self.endpoints {
            endpoint.wait_idle().await;
        }
    }
}

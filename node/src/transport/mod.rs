//! QUIC: one endpoint per listen address, each of them client and server, with our settings throughout.
//!
//! Invariants: every connection that comes out of [`Transport::dial`] or of an accepted [`quinn::Incoming`] proved an
//! Ed25519 key ([`peer_of`]); one that was dialled proved the key it was dialled for, before anything of ours was sent.
//! No session is ever resumed. A connection of a run that died ends as soon as its peer sends to the next run (`resets`). What a connection can make us hold is bounded (`quic_settings`).
//!
//! Not here: who may come in (`admission`), what is said on streams (`driver`), which connection stays (`registry`),
//! and how long an accepted handshake may take (its caller: TLS 5 s).

mod berths;
mod callers;
mod ending;
mod resets;
mod sieve;
mod socket;
mod tls;

#[cfg(test)]
mod tests;

use std::fmt;
use std::future::{Future, poll_fn};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use handfast_protocol::limits::STREAMS_MAX;
use handfast_protocol::{CloseCode, PeerId, SecretKey};
use quinn::{AckFrequencyConfig, IdleTimeout, Runtime as _, TransportConfig, ValidationTokenConfig, VarInt};
use quinn_proto::HashedConnectionIdGenerator;

pub use self::berths::{Berth, Berths, CROWD_NICENESS, DATA_NICENESS, stand_back};
pub use self::callers::{Caller, Callers};
pub use self::ending::{CloseReason, DialError, TransportError, close_reason};
pub use self::sieve::Overlooks;
use self::sieve::{Sieve, Spent};
pub use self::socket::{Buffers, buffers_granted};
use self::tls::{Found, Tls};
pub use self::tls::{KeyExchange, seed_generator};

const STREAM_WINDOW_BYTES: u32 = 64 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;
/// Packets that an end may take without saying so at once (draft-ietf-quic-ack-frequency): an answer that waits for the disk
/// carries the acknowledgement. Those that come out of order are acknowledged at once, as ever.
const ACK_PACKETS: u32 = 8;
/// Connection attempts that wait for admission.
const INCOMING_MAX: usize = 1024;
const INCOMING_BUFFER_BYTES: u64 = 8 * 1024;
const INCOMING_BUFFERS_BYTES: u64 = 2 * 1024 * 1024;

const _: () = assert!(STREAM_WINDOW_BYTES < CONNECTION_WINDOW_BYTES);

/// What an operator can choose about the transport; `config` has the defaults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransportSettings {
    /// How the two ends agree on keys.
    pub key_exchange: KeyExchange,
    /// A connection without a packet for this long is lost.
    pub idle_timeout: Duration,
    /// A packet is sent after this long without one; less than half of the idle time, so that one may be lost.
    pub keep_alive: Duration,
    /// Send and receive buffer to ask the system for, per socket.
    pub socket_buffer_bytes: usize,
}

/// All endpoints of a node.
#[derive(Debug)]
pub struct Transport {
    own: PeerId,
    tls: Tls,
    quic: Arc<TransportConfig>,
    endpoints: Vec<Listener>,
    spent: Spent,
    /// Which endpoint is asked first, so that a busy one does not starve the others.
    turn: AtomicUsize,
}

struct Listener {
    endpoint: quinn::Endpoint,
    local: SocketAddr,
    takes_ipv4: bool,
    /// Knows the connection ids that it gives out.
    ids: HashedConnectionIdGenerator,
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener").field("local", &self.local).finish_non_exhaustive()
    }
}

impl Transport {
    /// Binds every address. Must be called within a tokio runtime: quinn spawns its drivers there. `[::]` takes IPv4
    /// too unless an IPv4 address of `listen` has the same port, and stands for `0.0.0.0` where there is no IPv6.
    ///
    /// # Errors
    /// The first address that could not be bound, and why.
    pub fn bind(
        listen: &[SocketAddr],
        key: &SecretKey,
        settings: &TransportSettings,
    ) -> Result<Transport, TransportError> {
        Transport::bind_as(listen, key, settings, &Berths::shared(), Arc::new(|_| false))
    }

    /// As [`Transport::bind`], with connections on the threads of `berths`, and without the first packets that `overlooks`
    /// leaves out.
    ///
    /// # Errors
    /// As [`Transport::bind`].
    pub fn bind_as(
        listen: &[SocketAddr],
        key: &SecretKey,
        settings: &TransportSettings,
        berths: &Berths,
        overlooks: Overlooks,
    ) -> Result<Transport, TransportError> {
        let tls = Tls::new(key, settings.key_exchange);
        let quic = Arc::new(quic_settings(settings));
        let server = server_config(&tls, &quic)?;
        let mut endpoints = Vec::with_capacity(listen.len());
        let spent = Spent::default();
        for socket in socket::bind_all(listen, settings.socket_buffer_bytes)? {
            let failed = |source| TransportError::Socket { address: socket.local, source };
            let runtime = Arc::new(berths.clone());
            let keys = resets::Keys::of(key, socket.local);
            let behind = runtime.wrap_udp_socket(socket.socket).map_err(failed)?;
            let behind = Sieve::before(behind, keys.ids(), spent.clone(), overlooks.clone());
            let server = Some(server.clone());
            let endpoint = quinn::Endpoint::new_with_abstract_socket(keys.endpoint_config(), server, behind, runtime);
            let endpoint = endpoint.map_err(failed)?;
            let (local, takes_ipv4) = (socket.local, socket.takes_ipv4);
            endpoints.push(Listener { endpoint, local, takes_ipv4, ids: keys.ids() });
        }
        Ok(Transport { own: key.peer_id(), tls, quic, endpoints, spent, turn: AtomicUsize::new(0) })
    }

    /// What was bound, with the ports that the system chose.
    pub fn local_addrs(&self) -> Vec<SocketAddr> {
        self.endpoints.iter().map(|listener| listener.local).collect()
    }

    /// The next connection attempt on any endpoint; `None` once all are closed. Dropping the future loses none.
    pub async fn accept(&self) -> Option<quinn::Incoming> {
        let first = self.turn.fetch_add(1, Ordering::Relaxed) % self.endpoints.len().max(1);
        let (before, from_first) = self.endpoints.split_at(first);
        let mut accepts: Vec<_> =
            from_first.iter().chain(before).map(|listener| Box::pin(listener.endpoint.accept())).collect();
        poll_fn(|context| {
            let mut open = false;
            for accept in &mut accepts {
                match accept.as_mut().poll(context) {
                    Poll::Ready(Some(incoming)) => return Poll::Ready(Some(incoming)),
                    Poll::Ready(None) => {}
                    Poll::Pending => open = true,
                }
            }
            if open { Poll::Pending } else { Poll::Ready(None) }
        })
        .await
    }

    /// Whether an attempt is none, but comes with an id that this node gave out for another connection, which is no more: it
    /// is to be ignored, and so will be what comes with the same id.
    pub fn is_misdirected(&self, incoming: &quinn::Incoming) -> bool {
        let to = incoming.orig_dst_cid();
        let is_ours = || self.endpoints.iter().any(|listener| sieve::is_ours(&to, &listener.ids));
        let is_misdirected = !incoming.remote_address_validated() && is_ours();
        if is_misdirected {
            self.spent.add(to);
        }
        is_misdirected
    }

    /// Connects to `peer` at an address. Whoever answers there with another key gets nothing of ours.
    ///
    /// # Errors
    /// See [`DialError`]. A handshake that is still going on at the deadline is given up.
    pub async fn dial(
        &self,
        peer: &PeerId,
        at: SocketAddr,
        deadline: Duration,
    ) -> Result<quinn::Connection, DialError> {
        if *peer == self.own {
            return Err(DialError::Myself);
        }
        let found = Found::default();
        let connecting = self.connect(peer, at, &found)?;
        match tokio::time::timeout(deadline, connecting).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) => Err(found.key().map_or_else(|| DialError::of(&error), DialError::wrong_key)),
            Err(_elapsed) => Err(DialError::TimedOut),
        }
    }

    fn connect(&self, peer: &PeerId, at: SocketAddr, found: &Found) -> Result<quinn::Connecting, DialError> {
        let listener = self.listener_for(at).ok_or(DialError::Unreachable)?;
        let mut config = quinn::ClientConfig::new(self.tls.client(peer, found)?);
        config.transport_config(Arc::clone(&self.quic));
        config.token_store(Arc::new(quinn::NoneTokenStore));
        // The encoded id serves as the name that rustls wants; it stays here, because SNI is off.
        Ok(listener.endpoint.connect_with(config, at, &peer.to_string())?)
    }

    /// An endpoint from which `at` can be reached: of its family, and not bound to loopback unless `at` is there too.
    fn listener_for(&self, at: SocketAddr) -> Option<&Listener> {
        let can_reach = |listener: &&Listener| {
            let family = if at.is_ipv4() { listener.takes_ipv4 } else { listener.local.is_ipv6() };
            family && (is_loopback(at.ip()) || !is_loopback(listener.local.ip()))
        };
        self.endpoints.iter().find(can_reach)
    }

    /// Closes every connection with this code and stops taking new ones.
    pub fn close(&self, code: CloseCode) {
        for listener in &self.endpoints {
            listener.endpoint.close(VarInt::from_u32(code.code()), b"");
        }
    }

    /// Returns when the ends of all connections have been told, or have been waited for long enough.
    pub async fn wait_idle(&self) {
        for listener in &self.endpoints {
            listener.endpoint.wait_idle().await;
        }
    }
}

/// Whose key TLS proved on this connection.
pub fn peer_of(connection: &quinn::Connection) -> Option<PeerId> {
    let identity = connection.peer_identity()?.downcast::<Vec<rustls::pki_types::CertificateDer<'static>>>().ok()?;
    tls::proven_key(identity.first()?)
}

/// The address at the other end, IPv4 as IPv4 also on a socket of both families.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

fn server_config(tls: &Tls, quic: &Arc<TransportConfig>) -> Result<quinn::ServerConfig, TransportError> {
    let mut tokens = ValidationTokenConfig::default();
    // A token would let an address that was validated once skip Retry for weeks.
    tokens.sent(0).log(Arc::new(quinn::NoneTokenLog));
    let mut config = quinn::ServerConfig::with_crypto(tls.server()?);
    config
        .transport_config(Arc::clone(quic))
        .validation_token_config(tokens)
        .max_incoming(INCOMING_MAX)
        .incoming_buffer_size(INCOMING_BUFFER_BYTES)
        .incoming_buffer_size_total(INCOMING_BUFFERS_BYTES);
    Ok(config)
}

/// What a connection may hold: 8 streams of 64 KiB fit into its 1 MiB, and we buffer as much towards it.
fn quic_settings(settings: &TransportSettings) -> TransportConfig {
    let idle_ms = u32::try_from(settings.idle_timeout.as_millis()).unwrap_or(u32::MAX);
    let mut acks = AckFrequencyConfig::default();
    acks.ack_eliciting_threshold(VarInt::from_u32(ACK_PACKETS));
    let mut config = TransportConfig::default();
    config
        .ack_frequency_config(Some(acks))
        .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS_MAX))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW_BYTES))
        .send_window(u64::from(CONNECTION_WINDOW_BYTES))
        .datagram_receive_buffer_size(None)
        .datagram_send_buffer_size(0)
        // An exchange is a few packets: probing for larger ones would cost more than it saves.
        .mtu_discovery_config(None)
        .keep_alive_interval(Some(settings.keep_alive))
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(idle_ms))));
    config
}

//! Connections from their first packet to their last: accepting, the streams of one connection, closing.
//!
//! One task a connection, one a stream; QUIC bounds the streams (8), the registry the connections of one peer. A task
//! that dies takes its link out of the registry (`Registration`), which ends its session.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use handfast_protocol::codec;
use handfast_protocol::limits::{
    DURABLE_DEADLINE_MS, EXCHANGE_DEADLINE_MS, FRAME_DEADLINE_MS, HEAD_BYTES_MAX, JOIN_DEADLINE_MS,
};
use handfast_protocol::stream::{Head, Ping, StreamKind};
use handfast_protocol::{CloseCode, PeerId, RefuseCode, ServiceName};
use handfast_trust::trust_record::TrustState;
use handfast_trust::{Direction, EndReason, Purpose, Role};
use quinn::{RecvStream, SendStream, VarInt};
use tokio::time::{Instant, MissedTickBehavior, timeout};

use crate::admission::{Arrival, Seat, Slot, Turn, Verdict};
use crate::clock::unix_now;
use crate::driver::{self, read_frame_in_time, refuse};
use crate::engine::Engine;
use crate::join::conversation;
use crate::registry::{Link, Registration};
use crate::service::{ServiceFault, ServiceStream};
use crate::transport::{Berth, CloseReason, close_reason, peer_of};

/// How long TLS may take.
const TLS_DEADLINE: Duration = Duration::from_secs(5);
/// How long a connection that is no session may be without an exchange; it is gone before twice that.
const LINGER: Duration = Duration::from_secs(4);
/// How long one may be there that is no session and holds a permit, whatever it does: as long as an exchange and a join take
/// at most.
const PERMIT_AGE_MAX: Duration = Duration::from_millis(EXCHANGE_DEADLINE_MS + JOIN_DEADLINE_MS);
/// How long an exchange waits for the one before it on its connection: as long as that may wait for the disk. Its
/// opener may have seen that one end a moment before we do, and a revoke must not be turned away for that.
const TURN_PATIENCE: Duration = Duration::from_millis(DURABLE_DEADLINE_MS);
/// Longest encoded ping.
const PING_BYTES_MAX: usize = 8;
/// How long a ping may take.
const PING_DEADLINE: Duration = Duration::from_secs(5);
/// Connections in all: beyond, new ones are refused before any cryptography.
const CONNECTIONS_MAX: u64 = 50_000;

/// Takes connections until the transport closes.
pub async fn accept(engine: Arc<Engine>) {
    // Who has come first is first.
    let mut anteroom: VecDeque<(quinn::Incoming, Seat)> = VecDeque::new();
    loop {
        let incoming = tokio::select! {
            incoming = engine.transport.accept() => incoming,
            () = turn_comes(&engine, &anteroom) => {
                call_in(&engine, &mut anteroom);
                continue;
            }
        };
        let Some(incoming) = incoming else { return };
        if engine.transport.is_misdirected(&incoming) {
            incoming.ignore();
            continue;
        }
        let arrival = Arrival { remote: incoming.remote_address(), is_validated: incoming.remote_address_validated() };
        let is_trusted =
            |peer: &PeerId| engine.book.authorise(peer, Purpose::Session, Direction::Inbound, unix_now()).is_ok();
        let verdict = if engine.registry.counts().1 >= CONNECTIONS_MAX {
            Verdict::Refuse
        } else {
            engine.admission.judge(arrival, engine.clock.now().0, is_trusted)
        };
        match verdict {
            Verdict::Accept(slot) => begin(&engine, incoming, slot),
            Verdict::Wait(seat) => anteroom.push_back((incoming, seat)),
            Verdict::Retry => {
                // Refused only for an address that is proven already, and then it needs no Retry.
                if let Err(proven) = incoming.retry() {
                    proven.into_incoming().refuse();
                }
            }
            Verdict::Refuse => incoming.refuse(),
        }
    }
}

async fn turn_comes(engine: &Engine, anteroom: &VecDeque<(quinn::Incoming, Seat)>) {
    match anteroom.front() {
        Some((_, seat)) => engine.admission.freed(seat, engine.clock.now().0).await,
        None => std::future::pending().await,
    }
}

/// Begins with those whose turn has come, and sends those away who have waited too long.
fn call_in(engine: &Arc<Engine>, anteroom: &mut VecDeque<(quinn::Incoming, Seat)>) {
    while let Some((incoming, seat)) = anteroom.pop_front() {
        match engine.admission.turn(seat, engine.clock.now().0) {
            Turn::Begin(slot) => begin(engine, incoming, slot),
            Turn::Refuse => incoming.refuse(),
            Turn::Wait(seat) => return anteroom.push_front((incoming, seat)),
        }
    }
}

fn begin(engine: &Arc<Engine>, incoming: quinn::Incoming, slot: Slot) {
    let berth = Berth::new(!slot.stands_back());
    let handshake = handshake(engine.clone(), incoming, slot, berth.clone());
    engine.berths.spawn(&berth, handshake);
}

/// TLS, paid for by the slot, and then the connection until it ends.
async fn handshake(engine: Arc<Engine>, incoming: quinn::Incoming, slot: Slot, berth: Berth) {
    slot.begins(engine.clock.now().0);
    let gives_way = slot.gives_way();
    let connection = match berth.accept(incoming) {
        Ok(connecting) => tokio::select! {
            connected = timeout(TLS_DEADLINE, connecting) => connected,
            () = gives_way.notified() => return,
        },
        Err(error) => Ok(Err(error)),
    };
    match connection {
        Ok(Ok(connection)) => {
            if let Some(registration) = admit(&engine, connection.clone(), slot, berth.clone()) {
                serve(engine, registration).await;
            }
            if connection.close_reason().is_some_and(|error| is_peers(&error)) {
                berth.leave();
            }
        }
        Ok(Err(error)) => {
            tracing::debug!(%error, "handshake failed");
            if is_peers(&error) {
                berth.leave();
            }
        }
        Err(_) => tracing::debug!("handshake timed out"),
    }
}

/// Whether the peer has closed the connection.
fn is_peers(error: &quinn::ConnectionError) -> bool {
    matches!(error, quinn::ConnectionError::ConnectionClosed(_) | quinn::ConnectionError::ApplicationClosed(_))
}

/// A connection whose peer TLS has proven; `None` if it is closed again. Its slot goes with it until it is a session or at
/// its end.
fn admit(engine: &Arc<Engine>, connection: quinn::Connection, mut slot: Slot, berth: Berth) -> Option<Registration> {
    slot.authenticated();
    let close = |code: CloseCode| {
        connection.close(VarInt::from_u32(code.code()), b"");
        None
    };
    let Some(peer) = peer_of(&connection).filter(|peer| *peer != engine.book.me()) else {
        return close(CloseCode::Refused);
    };
    // A blocked peer may still take its own word back; one that never gave it has nothing to say.
    if engine.book.state(&peer, unix_now()) == TrustState::Blocked
        && engine.book.record(&peer).is_none_or(|record| record.theirs.is_none())
    {
        return close(CloseCode::Refused);
    }
    let paid_by = Some((slot, berth));
    engine.registry.register(peer, Role::Listener, connection.clone(), paid_by).or_else(|| close(CloseCode::Busy))
}

/// Serves a registered connection until it ends.
pub fn spawn(engine: Arc<Engine>, registration: Registration) {
    tokio::spawn(serve(engine, registration));
}

async fn serve(engine: Arc<Engine>, registration: Registration) {
    let link = registration.link.clone();
    let mut orders = link.orders();
    let gives_way = link.gives_way();
    let mut idle = tokio::time::interval_at(Instant::now() + LINGER, LINGER);
    idle.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut idleness = Idleness { began: Instant::now(), is_busy: true };
    let mut lost = true;
    let reason = loop {
        tokio::select! {
            stream = link.connection.accept_bi() => match stream {
                Ok((send, recv)) => {
                    idleness.is_busy = true;
                    let (engine, link) = (engine.clone(), link.clone());
                    tokio::spawn(async move { stream_opened(&engine, &link, send, recv).await });
                }
                Err(error) => {
                    // A peer that stops dials again when it starts.
                    lost = close_reason(&error) != CloseReason::Peer(CloseCode::Stopping);
                    break end_reason(&error);
                }
            },
            Ok(code) = async { orders.wait_for(|orders| orders.close.is_some()).await.map(|orders| orders.close) } => {
                let code = code.unwrap_or(CloseCode::Done);
                let code = tokio::select! {
                    () = quiet(&link) => code,
                    () = gives_way.notified(), if !link.is_session() => CloseCode::Busy,
                };
                link.connection.close(VarInt::from_u32(code.code()), b"");
                break if code == CloseCode::Duplicate { EndReason::Replaced } else { EndReason::Lost };
            }
            () = gives_way.notified(), if !link.is_session() => {
                link.connection.close(VarInt::from_u32(CloseCode::Busy.code()), b"");
                break EndReason::Lost;
            }
            now = idle.tick() => {
                if idleness.is_over(link.is_session() || link.is_conversing(), link.holds_permit(), now) {
                    link.retire(CloseCode::Done);
                }
            }
        }
    };
    let was_session = engine.registry.ended(&link, reason);
    drop(registration);
    lost &= matches!(reason, EndReason::Lost | EndReason::PeerClosed | EndReason::Replaced);
    let trusted = || engine.book.authorise(&link.peer, Purpose::Session, Direction::Outbound, unix_now()).is_ok();
    if was_session && lost && trusted() && engine.registry.session(&link.peer).is_none() {
        engine.outbox.reconnect(link.peer);
    }
}

/// Whether a connection has had its time, looked at every [`LINGER`].
struct Idleness {
    began: Instant,
    /// Since it was looked at last.
    is_busy: bool,
}

impl Idleness {
    fn is_over(&mut self, is_in_use: bool, holds_permit: bool, now: Instant) -> bool {
        let was_busy = std::mem::replace(&mut self.is_busy, is_in_use);
        let is_old = holds_permit && now.duration_since(self.began) >= PERMIT_AGE_MAX;
        is_old || !(is_in_use || was_busy)
    }
}

/// Waits until running exchanges are over, at most as long as one waits for the disk and a frame.
async fn quiet(link: &Link) {
    let patience = Duration::from_millis(DURABLE_DEADLINE_MS + FRAME_DEADLINE_MS);
    let _ = timeout(patience, link.quiet()).await;
}

fn end_reason(error: &quinn::ConnectionError) -> EndReason {
    match close_reason(error) {
        CloseReason::Here => EndReason::Stopped,
        CloseReason::Peer(code) => EndReason::of_peers_close(code),
        _ => EndReason::Lost,
    }
}

async fn stream_opened(engine: &Arc<Engine>, link: &Arc<Link>, mut send: SendStream, mut recv: RecvStream) {
    let head = match read_frame_in_time(&mut recv, HEAD_BYTES_MAX).await {
        Ok(Some(body)) => Head::read(&body),
        Ok(None) => return,
        Err(fault) => Err(fault.refuse_code()),
    };
    let code = match head {
        Ok(StreamKind::Exchange) => match timeout(TURN_PATIENCE, link.inbound_exchange.acquire()).await {
            Ok(Ok(turn)) => {
                let exchanged = driver::respond(engine, link, &mut send, &mut recv).await;
                drop(turn);
                tracing::debug!(peer = %link.peer.short(), result = ?exchanged.result, "exchange answered");
                engine.after_exchange(link, &exchanged, false);
                // Without a receipt the answer may be lost, and our word with it.
                engine.deliver(link.peer);
                return engine.catch_up(link, &exchanged).await;
            }
            _ => RefuseCode::Busy,
        },
        Ok(StreamKind::Ping) => match answer_ping(engine, &link.peer, &mut send, &mut recv).await {
            Ok(()) => return,
            Err(code) => code,
        },
        Ok(StreamKind::Service(name)) => return service(engine, link, &name, send, recv),
        Ok(StreamKind::Join) => match timeout(TURN_PATIENCE, link.inbound_join.acquire()).await {
            Ok(Ok(_turn)) => return conversation::serve(engine, link, &mut send, &mut recv).await,
            _ => RefuseCode::Busy,
        },
        Err(code) => code,
    };
    refuse(&mut send, &mut recv, code);
}

async fn answer_ping(
    engine: &Engine,
    peer: &PeerId,
    send: &mut SendStream,
    recv: &mut RecvStream,
) -> Result<(), RefuseCode> {
    engine
        .book
        .authorise(peer, Purpose::Session, Direction::Inbound, unix_now())
        .map_err(|_| RefuseCode::NotAuthorised)?;
    let body = read_frame_in_time(recv, PING_BYTES_MAX).await.map_err(|fault| fault.refuse_code())?;
    let ping: Ping = codec::decode(&body.unwrap_or_default(), PING_BYTES_MAX).map_err(|_| RefuseCode::BadFrame)?;
    send.write_all(&codec::frame(&ping)).await.map_err(|_| RefuseCode::Unspecified)?;
    // Refused only where the stream has ended already.
    let _ = send.finish();
    Ok(())
}

fn service(engine: &Engine, link: &Arc<Link>, name: &ServiceName, mut send: SendStream, mut recv: RecvStream) {
    let allowed = engine.book.authorise(&link.peer, Purpose::Service(name), Direction::Inbound, unix_now());
    let code = match (allowed, engine.services.taker(name), link.services.clone().try_acquire_owned()) {
        (Err(_), ..) => RefuseCode::NotAuthorised,
        (_, None, _) => RefuseCode::NoSuchService,
        (.., Err(_)) => RefuseCode::Busy,
        (Ok(()), Some(taker), Ok(place)) => match taker.try_reserve() {
            Ok(slot) => {
                slot.send(ServiceStream::new(link.peer, (send, recv), link.orders(), place));
                return;
            }
            Err(_) => RefuseCode::Busy,
        },
    };
    refuse(&mut send, &mut recv, code);
}

/// Why a ping did not come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PingFault {
    /// The other end closed the stream, or the connection is gone.
    #[error("the peer did not answer the ping")]
    Ended,
    /// Nothing came in time.
    #[error("the ping timed out")]
    TimedOut,
}

/// One authenticated round trip over the connection of a session.
pub async fn ping(connection: &quinn::Connection, nonce: u64) -> Result<Duration, PingFault> {
    let round_trip = async {
        let (mut send, mut recv) = connection.open_bi().await.map_err(|_| PingFault::Ended)?;
        let began = Instant::now();
        let frames = [codec::frame(&Head::new(StreamKind::Ping)), codec::frame(&Ping { nonce })].concat();
        send.write_all(&frames).await.map_err(|_| PingFault::Ended)?;
        let body = read_frame_in_time(&mut recv, PING_BYTES_MAX).await.map_err(|_| PingFault::Ended)?;
        let back = body.and_then(|body| codec::decode::<Ping>(&body, PING_BYTES_MAX).ok());
        if back == Some(Ping { nonce }) { Ok(began.elapsed()) } else { Err(PingFault::Ended) }
    };
    timeout(PING_DEADLINE, round_trip).await.unwrap_or(Err(PingFault::TimedOut))
}

/// Opens an application stream to a trusted peer, over its session.
pub async fn open_service(engine: &Engine, link: &Link, name: &ServiceName) -> Result<ServiceStream, ServiceFault> {
    engine
        .book
        .authorise(&link.peer, Purpose::Service(name), Direction::Outbound, unix_now())
        .map_err(|_| ServiceFault::Cut)?;
    let orders = link.orders();
    let place = link.services.clone().acquire_owned().await.map_err(|_| ServiceFault::Ended)?;
    let (mut send, recv) = link.connection.open_bi().await.map_err(|_| ServiceFault::Ended)?;
    let head = codec::frame(&Head::new(StreamKind::Service(name.clone())));
    send.write_all(&head).await.map_err(|_| ServiceFault::Ended)?;
    Ok(ServiceStream::new(link.peer, (send, recv), orders, place))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_that_is_no_session_ends_when_idle_and_with_a_permit_in_any_case() {
        let began = Instant::now();
        // Until when it stays, looked at every LINGER for an hour; it is busy in some of the intervals.
        let stays = |is_busy: fn(u32) -> bool, is_in_use: bool, holds_permit: bool| {
            let mut idleness = Idleness { began, is_busy: true };
            (1..900u32).find(|tick| {
                idleness.is_busy |= is_busy(*tick);
                idleness.is_over(is_in_use, holds_permit, began + LINGER * *tick)
            })
        };
        let old = u32::try_from(PERMIT_AGE_MAX.as_millis().div_ceil(LINGER.as_millis())).unwrap();
        assert_eq!(stays(|_| false, false, true), Some(2));
        assert_eq!(stays(|tick| tick < 5, false, true), Some(5));
        assert_eq!(stays(|_| true, false, true), Some(old), "a refused stream now and then");
        assert_eq!(stays(|_| true, true, true), Some(old));
        assert_eq!(stays(|_| false, true, false), None, "a session");
    }
}

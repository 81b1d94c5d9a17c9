//! Peers that do not follow the protocol, or do nothing: malformed bytes, statements of others, connections that hang,
//! sessions that idle. Each knows what the node owes it: a refusal, an end within its deadline, or patience.
//!
//! A node that turns such a peer away before it can do anything has done what it should.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use handfast_protocol::codec;
use handfast_protocol::exchange::{ExchangeFault, Offer};
use handfast_protocol::limits::FRAME_BYTES_MAX;
use handfast_protocol::stream::{Extensions, Head, StreamKind};
use handfast_protocol::{Incarnation, Kind as Statement, SecretKey};
use tokio::time::{Instant, timeout};

use super::kind::{Kind, scatter};
use super::load::Load;
use super::mute::{MuteSocket, Muteness};
use super::peer::{Conversed, DIAL_DEADLINE, Fault, Group, Peer, close, key_of};
use super::vanish::vanish;
use crate::clock::unix_now;
use crate::driver::read_frame_in_time;
use crate::transport::{Callers, DialError, TransportError, TransportSettings, close_reason};

/// How long a connection that does nothing may be kept: the design says ten seconds; two are for the way.
const SLOW_PATIENCE: Duration = Duration::from_secs(12);
/// How long a peer hangs that has not got through TLS: beyond the node's deadline for it.
const MUTE_PATIENCE: Duration = Duration::from_secs(8);

/// Endpoints of peers that stop in the middle of a handshake.
pub struct MuteCallers {
    deaf: Callers,
    after_initial: Callers,
}

impl MuteCallers {
    /// Binds to the same addresses as the honest peers.
    ///
    /// # Errors
    /// As [`Callers::bind`].
    pub fn bind(from: &[SocketAddr], settings: &TransportSettings) -> Result<MuteCallers, TransportError> {
        let bind = |muteness| Callers::bind_through(from, settings, |socket| MuteSocket::wrap(socket, muteness));
        Ok(MuteCallers { deaf: bind(Muteness::Deaf)?, after_initial: bind(Muteness::AfterInitial)? })
    }
}

/// Carries out one operation and counts it.
pub async fn operate(load: &Load, kind: Kind, number: u64) {
    let began = Instant::now();
    let stage = scatter(!load.plan.seed, number);
    let result = match kind {
        Kind::Garbage => garbage(load, stage).await,
        Kind::Replay => replay(load, stage).await,
        Kind::Vanish => vanish(load, stage).await,
        _ => slow(load, stage).await,
    };
    match result {
        Ok(()) => load.completed(kind, began),
        Err(fault) => load.failed(kind, fault),
    }
}

fn head() -> Vec<u8> {
    codec::frame(&Head::new(StreamKind::Exchange))
}

fn offer(incarnation: u8) -> Offer {
    Offer {
        statement: None,
        yours: None,
        incarnation: Incarnation([incarnation; 16]),
        address: None,
        extensions: Extensions::default(),
    }
}

fn frame_of(body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    [&length.to_le_bytes(), body].concat()
}

fn noise(seed: u64, length: usize) -> Vec<u8> {
    (0..length as u64).map(|place| scatter(seed, place).to_le_bytes()[0]).collect()
}

/// A connection as `peer`; `None` when the node turns it away.
async fn connect(load: &Load, peer: &Peer) -> Option<quinn::Connection> {
    let from = usize::try_from(peer.number).unwrap_or_default();
    load.crowd.dial(from, &peer.key, &load.target.peer, load.target.at, DIAL_DEADLINE).await.ok()
}

/// A stranger that leaves a memory of having said nothing that may be stored.
fn intruder(load: &Load) -> Peer {
    let mut peer = load.peers.new_stranger();
    peer.memory.is_intruder = true;
    peer
}

async fn garbage(load: &Load, stage: u64) -> Result<(), Fault> {
    let random = noise(stage, 300);
    let long = [&codec::frame(&offer(1))[4..], &[0]].concat();
    let bytes = match stage % 6 {
        0 => return garbage_datagrams(load, stage).await,
        1 => frame_of(&random),
        2 => vec![0xff; 64],
        3 => [head(), frame_of(&random)].concat(),
        4 => [head(), frame_of(&random)[..100].to_vec()].concat(),
        _ => [head(), frame_of(&long)].concat(),
    };
    let peer = intruder(load);
    let outcome = match connect(load, &peer).await {
        Some(connection) => refused(&connection, &bytes).await,
        None => Ok(()),
    };
    load.peers.retire(peer);
    outcome
}

/// Datagrams that are nothing, and some that look like first packets.
async fn garbage_datagrams(load: &Load, stage: u64) -> Result<(), Fault> {
    let any = if load.target.at.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { [0u16; 8].into() };
    let Ok(socket) = tokio::net::UdpSocket::bind(SocketAddr::new(any, 0)).await else {
        return Err(Fault::NotSent);
    };
    for number in 0..8u64 {
        let mut datagram = noise(stage ^ number, 1_200);
        if number % 2 == 0 {
            datagram[..5].copy_from_slice(&[0xc0, 0, 0, 0, 1]);
        }
        // A datagram may be lost, here as well as elsewhere.
        let _ = socket.send_to(&datagram, load.target.at).await;
    }
    Ok(())
}

/// Sends `bytes` on a stream and expects that nothing is answered.
async fn refused(connection: &quinn::Connection, bytes: &[u8]) -> Result<(), Fault> {
    let answered = async {
        let (mut send, mut recv) = connection.open_bi().await.ok()?;
        send.write_all(bytes).await.ok()?;
        send.finish().ok()?;
        Some(read_frame_in_time(&mut recv, FRAME_BYTES_MAX).await)
    };
    let outcome = match answered.await {
        Some(Ok(Some(_))) => Err(Fault::NotRefused),
        Some(Err(ExchangeFault::TimedOut)) => Err(Fault::TimedOut),
        _ => Ok(()),
    };
    close(connection);
    outcome
}

/// Statements that are authentic and not the speaker's to give.
async fn replay(load: &Load, stage: u64) -> Result<(), Fault> {
    let mut victim = Peer::new(load.plan.seed, Group::Strangers, u64::MAX - stage % 1_000);
    let of_another = victim.say(load.target.peer, Statement::Grant, unix_now());
    let mut peer = intruder(load);
    let somebody: SecretKey = key_of(load.plan.seed, Group::Strangers, u64::MAX / 2);
    let to_another = peer.say(somebody.peer_id(), Statement::Grant, unix_now());
    let mut said = offer(2);
    match stage % 3 {
        0 => said.statement = of_another.map(|statement| statement.signed().clone()),
        1 => said.statement = to_another.map(|statement| statement.signed().clone()),
        _ => said.yours = of_another.map(|statement| statement.signed().clone()),
    }
    let outcome = match connect(load, &peer).await {
        Some(connection) => refused(&connection, &[head(), codec::frame(&said)].concat()).await,
        None => Ok(()),
    };
    load.peers.retire(peer);
    outcome
}

async fn slow(load: &Load, stage: u64) -> Result<(), Fault> {
    let peer = intruder(load);
    let mute = |callers: &Callers| {
        let (from, key) = (usize::try_from(peer.number).unwrap_or_default(), peer.key.clone());
        let (target, callers) = (load.target, callers.clone());
        async move { callers.dial(from, &key, &target.peer, target.at, MUTE_PATIENCE).await }
    };
    let whole = [head(), codec::frame(&offer(3))].concat();
    let outcome = match stage % 5 {
        0 => {
            load.hung("deaf", None);
            mute(&load.mute.deaf).await.map_or(Ok(()), |_| Err(Fault::NotRefused))
        }
        // To this end the handshake may look finished: only its own last words are missing. The node may not send as
        // much as a farewell to an address that has not proven itself: that it let go shows in its own count.
        1 => {
            let began = Instant::now();
            let heard = match mute(&load.mute.after_initial).await {
                Ok(connection) => {
                    let ended = timeout(MUTE_PATIENCE, connection.closed()).await;
                    close(&connection);
                    ended.is_ok()
                }
                Err(fault) => fault != DialError::TimedOut,
            };
            load.hung("within TLS", heard.then(|| began.elapsed()));
            Ok(())
        }
        2 => hang(load, &peer, &[], "before the first frame").await,
        3 => hang(load, &peer, &whole[..whole.len() / 2], "within a frame").await,
        _ => hang(load, &peer, &whole, "before the receipt").await,
    };
    load.peers.retire(peer);
    outcome
}

/// Sends the beginning of a conversation, reads nothing, and expects to be sent away.
async fn hang(load: &Load, peer: &Peer, bytes: &[u8], stage: &'static str) -> Result<(), Fault> {
    let Some(connection) = connect(load, peer).await else { return Ok(()) };
    let stream = if bytes.is_empty() { None } else { connection.open_bi().await.ok() };
    let held = match stream {
        Some((mut send, recv)) => send.write_all(bytes).await.ok().map(|()| (send, recv)),
        None => None,
    };
    let began = Instant::now();
    let ended = timeout(SLOW_PATIENCE, connection.closed()).await;
    close(&connection);
    drop(held);
    load.hung(stage, ended.is_ok().then(|| began.elapsed()));
    ended.map(|_| ()).map_err(|_| Fault::Kept(stage))
}

/// A trusted peer with a session that is to be kept.
pub async fn settle_down(load: &Load) -> Result<(Peer, Conversed), Fault> {
    let Some(mut peer) = load.peers.new_friend() else { return Err(Fault::NotSent) };
    match load.befriended(&mut peer).await {
        Ok(conversed) => Ok((peer, conversed)),
        Err(fault) => {
            load.peers.retire(peer);
            Err(fault)
        }
    }
}

/// Keeps its session until the load is over, and counts what became of it.
pub async fn idle(load: &Load, peer: Peer, conversed: Conversed) {
    let began = Instant::now();
    tokio::select! {
        () = peer.serve(&conversed.connection, &load.target) => {}
        () = load.until_stopped() => {}
    }
    let ended = conversed.connection.close_reason().map(|error| close_reason(&error));
    conversed.close();
    load.peers.retire(peer);
    match ended {
        None => load.completed(Kind::Idle, began),
        Some(reason) => load.failed(Kind::Idle, Fault::NotKept(reason)),
    }
}

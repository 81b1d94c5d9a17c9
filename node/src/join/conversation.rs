//! Moves bytes between a join stream and the join machines, asks the networks, and waits for the disk. Decides nothing.
//!
//! Redemption, host side, and what a crash leaves after each step: request read (nothing); decided, which stores
//! redemption, use and membership as one change (nothing, until that is durable); durable (the same key gets the same
//! certificate again); decided afresh; replied. Joiner side: certificate read (nothing: asking again gets the same);
//! kept; notices kept and the first page of the roster read, while the disk takes both; durable (the join is resumed
//! without the ticket); roster kept; all durable; done.
//!
//! Each step is told at TRACE with its name, as `step`: the suite that kills either side at every step holds it there.
//!
//! Deadlines: each frame, the disk, the whole conversation. Pages are checked off the async workers, behind a gate of
//! [`VERIFY_MAX`] at a time, and the permit is inside the closure. A dropped driver loses nothing that was promised.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use handfast_protocol::codec;
use handfast_protocol::join::{
    Brought, Errand, JoinFault, JoinHost, JoinHostInput, JoinHostOutput, JoinReply, JoinRequest, Joiner, JoinerInput,
    JoinerOutput, RosterEntry,
};
use handfast_protocol::limits::{
    BUSY_RETRY_AFTER_MS, DURABLE_DEADLINE_MS, FRAME_DEADLINE_MS, JOIN_DEADLINE_MS, JOIN_FRAME_BYTES_MAX,
};
use handfast_protocol::stream::{Head, StreamKind};
use handfast_protocol::ticket::SecretBytes;
use handfast_protocol::{JoinRefusal, MembershipFault, PeerId, SignedAddressRecord, UnixMillis};
use handfast_trust::networks::Joined;
use handfast_trust::peers;
use handfast_trust::trust_record::TrustState;
use handfast_trust::{NetworkRefusal, Revision};
use quinn::{RecvStream, SendStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::clock::unix_now;
use crate::driver::{read_frame_in_time, refuse, send};
use crate::engine::Engine;
use crate::registry::Link;
use crate::transport::canonical;

/// Pages that are checked at the same time.
const VERIFY_MAX: usize = 2;
/// Of a page, so many members are checked first, and met while twice as many are checked, and so on: members of one
/// sponsor are checked the faster the more there are.
const MET_FIRST: usize = 2;
static VERIFY: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(VERIFY_MAX)));

/// Why a conversation failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ConversationFault {
    /// The conversation itself.
    #[error("{0}")]
    Join(JoinFault),
    /// What it brought cannot be kept here.
    #[error("{0}")]
    Network(NetworkRefusal),
}

impl From<JoinFault> for ConversationFault {
    fn from(fault: JoinFault) -> ConversationFault {
        ConversationFault::Join(fault)
    }
}

/// Runs an errand with the peer of `link`. `joined` is what the ticket says, where the errand redeems one.
pub async fn converse(
    engine: &Arc<Engine>,
    link: &Link,
    errand: Errand,
    joined: Option<&Joined>,
) -> Result<(), ConversationFault> {
    let whole = Duration::from_millis(JOIN_DEADLINE_MS);
    let outcome = timeout(whole, converse_within(engine, link, errand, joined)).await;
    outcome.unwrap_or(Err(JoinFault::TimedOut.into()))
}

async fn converse_within(
    engine: &Arc<Engine>,
    link: &Link,
    errand: Errand,
    joined: Option<&Joined>,
) -> Result<(), ConversationFault> {
    let _turn = link.outbound_join.acquire().await.map_err(|_| JoinFault::Closed)?;
    let (mut machine, first) = Joiner::start(engine.book.me(), errand);
    let (mut out, mut input) = link.connection.open_bi().await.map_err(|_| JoinFault::Closed)?;
    tracing::trace!(step = "connected");
    let sent = async {
        send(&mut out, &codec::frame(&Head::new(StreamKind::Join))).await?;
        send(&mut out, first.as_slice()).await
    };
    sent.await.map_err(|_| JoinFault::Closed)?;
    drop(first);
    tracing::trace!(step = "asked");
    let mut next = joiner_input(read_frame_in_time(&mut input, JOIN_FRAME_BYTES_MAX).await)?;
    loop {
        tracing::trace!(step = step_of(&next));
        next = match machine.handle(next) {
            JoinerOutput::Ask(frame) => {
                send(&mut out, &frame).await.map_err(|_| JoinFault::Closed)?;
                tracing::trace!(step = "asked");
                joiner_input(read_frame_in_time(&mut input, JOIN_FRAME_BYTES_MAX).await)?
            }
            JoinerOutput::Keep(brought) => keep(engine, link, brought, joined).await?,
            JoinerOutput::AwaitDurable(revision) => match durable(engine, revision).await {
                Some(reached) => JoinerInput::Durable(reached),
                None => JoinerInput::Deadline,
            },
            JoinerOutput::Finish(result) => {
                if let Err(fault @ JoinFault::Peer(_)) = result {
                    refuse(&mut out, &mut input, fault.refuse_code());
                }
                // The peer may as well have ended the stream by itself.
                let _ = out.finish();
                return result.map_err(ConversationFault::Join);
            }
        };
    }
}

/// What the joiner has just done.
fn step_of(input: &JoinerInput) -> &'static str {
    match input {
        JoinerInput::Frame(_) => "read",
        JoinerInput::Kept(_) => "kept",
        JoinerInput::Durable(_) => "durable",
        JoinerInput::NotBelieved => "not believed",
        JoinerInput::Deadline => "deadline",
        JoinerInput::Closed => "closed",
    }
}

/// And the host.
fn host_step_of(input: &JoinHostInput) -> &'static str {
    match input {
        JoinHostInput::Frame(_) => "host: read",
        JoinHostInput::Decided { .. } => "host: decided",
        JoinHostInput::Durable(_) => "host: durable",
        JoinHostInput::Deadline => "host: deadline",
        JoinHostInput::Closed => "host: closed",
    }
}

/// A frame, or what came instead of one.
fn joiner_input(
    read: Result<Option<Vec<u8>>, handfast_protocol::exchange::ExchangeFault>,
) -> Result<JoinerInput, JoinFault> {
    use handfast_protocol::exchange::ExchangeFault;
    match read {
        Ok(Some(body)) => Ok(JoinerInput::Frame(body)),
        Ok(None) | Err(ExchangeFault::Closed) => Ok(JoinerInput::Closed),
        Err(ExchangeFault::TimedOut) => Ok(JoinerInput::Deadline),
        Err(fault) => Err(JoinFault::Peer(fault.refuse_code())),
    }
}

async fn keep(
    engine: &Arc<Engine>,
    link: &Link,
    brought: Brought,
    joined: Option<&Joined>,
) -> Result<JoinerInput, ConversationFault> {
    let now = unix_now();
    let changed = match brought {
        Brought::Own(own) => match joined {
            Some(joined) => engine.networks.joined(joined, &own, now).map_err(ConversationFault::Network)?,
            None => match engine.networks.learn([own.membership()], now) {
                Ok(changed) => changed,
                Err(_) => return Ok(JoinerInput::NotBelieved),
            },
        },
        Brought::Notices(notices) if notices.is_empty() => return Ok(JoinerInput::Kept(0)),
        Brought::Notices(notices) => {
            let networks = engine.networks.clone();
            match checked(move || networks.learn_notices(&notices)).await {
                Some(Ok(changed)) => changed,
                Some(Err(_)) => return Ok(JoinerInput::NotBelieved),
                None => return Err(JoinFault::Closed.into()),
            }
        }
        Brought::Members(mut entries) => {
            let work = engine.clone();
            // Of a neighbour on this machine we hear of other neighbours.
            let local_too =
                engine.config.dial_local_addresses || canonical(link.connection.remote_address()).ip().is_loopback();
            let host = link.peer;
            // The host first: it has to know where we are before the roster is read again.
            entries.sort_by_key(|entry| entry.membership.member() != host);
            let learnt = checked(move || {
                let (mut rest, mut count) = (&entries[..], MET_FIRST);
                while !rest.is_empty() {
                    let (some, later) = rest.split_at(count.min(rest.len()));
                    meet(&work, some, local_too, now)?;
                    (rest, count) = (later, 2 * count);
                }
                Ok::<_, MembershipFault>(())
            });
            return match learnt.await {
                Some(Ok(())) => Ok(JoinerInput::Kept(0)),
                Some(Err(_)) => Ok(JoinerInput::NotBelieved),
                None => Err(JoinFault::Closed.into()),
            };
        }
    };
    engine.membership_changed(&changed.affected);
    // What was known already is waited for by whoever learnt it: to wait here would be for the members that came with
    // it, which are written at leisure.
    let revision = if changed.affected.is_empty() { 0 } else { changed.revision.0 };
    Ok(JoinerInput::Kept(revision))
}

/// Learns of members, and lets the rule grant to them: they are met while the next are checked, and the next page is read.
/// Nothing is promised of them: nobody waits for the disk.
fn meet(engine: &Engine, entries: &[RosterEntry], local_too: bool, now: UnixMillis) -> Result<(), MembershipFault> {
    let changed = engine.networks.learn(entries.iter().map(|entry| &entry.membership), now)?;
    engine.membership_changed(&changed.affected);
    take_addresses(engine, entries, local_too);
    for member in entries.iter().map(|entry| &entry.membership) {
        engine.enlist(member.network(), member.member());
    }
    Ok(())
}

/// Runs a check off the workers. `None`: the node is stopping, or the check died.
async fn checked<T: Send + 'static>(check: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let permit = VERIFY.clone().acquire_owned().await.ok()?;
    let task = tokio::task::spawn_blocking(move || {
        let _permit = permit;
        check()
    });
    task.await.ok()
}

/// What a roster says of where members are: only what they signed themselves, and only of members.
fn take_addresses(engine: &Engine, entries: &[RosterEntry], local_too: bool) {
    for signed in entries.iter().filter_map(|entry| entry.address.as_ref()) {
        engine.take_relayed(signed, local_too);
    }
}

/// Waits for the disk, as long as one step may.
async fn durable(engine: &Engine, revision: u64) -> Option<u64> {
    let durable = engine.networks.durable();
    let patience = Duration::from_millis(DURABLE_DEADLINE_MS);
    match timeout(patience, durable.reached(Revision(revision))).await {
        Ok(Ok(())) => Some(revision.max(durable.current().0)),
        _ => None,
    }
}

/// Serves a join stream that the peer of `link` opened.
pub async fn serve(engine: &Arc<Engine>, link: &Link, out: &mut SendStream, input: &mut RecvStream) {
    let whole = Duration::from_millis(JOIN_DEADLINE_MS);
    let result = timeout(whole, serve_within(engine, link, out, input)).await.unwrap_or(Err(JoinFault::TimedOut));
    tracing::debug!(peer = %link.peer.short(), ?result, "join conversation served");
    match result {
        Ok(()) | Err(JoinFault::NotDurable) => {}
        Err(fault) => refuse(out, input, fault.refuse_code()),
    }
}

async fn serve_within(
    engine: &Arc<Engine>,
    link: &Link,
    out: &mut SendStream,
    input: &mut RecvStream,
) -> Result<(), JoinFault> {
    let mut machine = JoinHost::new();
    let mut asked: Option<Box<JoinRequest>> = None;
    let mut next = host_input(read_frame_in_time(input, JOIN_FRAME_BYTES_MAX).await)?;
    loop {
        tracing::trace!(step = host_step_of(&next));
        next = match machine.handle(next) {
            JoinHostOutput::Decide(request) => decide(engine, &link.peer, asked.insert(request)),
            JoinHostOutput::Reconsider => match &asked {
                Some(request) => decide(engine, &link.peer, request),
                None => return Err(JoinFault::OutOfTurn),
            },
            JoinHostOutput::AwaitDurable(revision) => match durable(engine, revision).await {
                Some(reached) => JoinHostInput::Durable(reached),
                None => JoinHostInput::Deadline,
            },
            JoinHostOutput::Answer(frame) => {
                send(out, &frame).await.map_err(|_| JoinFault::Closed)?;
                tracing::trace!(step = "host: answered");
                host_input(read_frame_in_time(input, JOIN_FRAME_BYTES_MAX).await)?
            }
            JoinHostOutput::Finish { answer, result } => {
                if let Some(answer) = answer {
                    send(out, &answer).await.map_err(|_| JoinFault::Closed)?;
                    let _ = out.finish();
                    // A refusal is to arrive before whoever was refused is gone.
                    let _ = timeout(Duration::from_millis(FRAME_DEADLINE_MS), out.stopped()).await;
                }
                let _ = out.finish();
                return result;
            }
        };
    }
}

fn host_input(
    read: Result<Option<Vec<u8>>, handfast_protocol::exchange::ExchangeFault>,
) -> Result<JoinHostInput, JoinFault> {
    Ok(match joiner_input(read)? {
        JoinerInput::Frame(body) => JoinHostInput::Frame(SecretBytes::from(body)),
        JoinerInput::Deadline => JoinHostInput::Deadline,
        _ => JoinHostInput::Closed,
    })
}

/// What the networks say now to the key that TLS proved.
fn decide(engine: &Arc<Engine>, peer: &PeerId, request: &JoinRequest) -> JoinHostInput {
    let now = unix_now();
    if engine.book.state(peer, now) == TrustState::Blocked {
        // It was let in to take its own word back, and gets nothing else.
        let reply = Box::new(JoinReply::refused(JoinRefusal::Unspecified));
        return JoinHostInput::Decided { reply, revision: 0 };
    }
    let certifies = matches!(request, JoinRequest::Redeem { .. } | JoinRequest::Renew { .. });
    if certifies && engine.degraded().is_some() {
        return JoinHostInput::Decided { reply: Box::new(JoinReply::Busy(BUSY_RETRY_AFTER_MS as u32)), revision: 0 };
    }
    let address_of = |peer: &PeerId| address_of(engine, peer);
    let (reply, revision) = engine.networks.reply(*peer, request, &address_of, now);
    if certifies {
        engine.membership_changed(&[*peer]);
    }
    JoinHostInput::Decided { reply: Box::new(reply), revision: revision.0 }
}

/// Where a member is, by its own word, if that still holds.
fn address_of(engine: &Engine, peer: &PeerId) -> Option<SignedAddressRecord> {
    if *peer == engine.book.me() {
        return engine.address_record();
    }
    let record = engine.peers.read(|table| table.get(peer).cloned())?;
    peers::to_relay(&record, unix_now()).cloned()
}

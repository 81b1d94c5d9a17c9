//! Moves bytes between a QUIC stream and the exchange machines, asks the book, and waits for the disk. Decides nothing.
//!
//! Deadlines: each frame, the disk (over all waits of one exchange together), the whole exchange. A driver that is
//! dropped loses nothing: what was merged is in the book.

use std::sync::Arc;
use std::time::Duration;

use handfast_protocol::codec::{self, CodecFault, Deframer};
use handfast_protocol::exchange::{
    Agreement, AnswerTerms, Disposition, ExchangeFault, Initiator, InitiatorInput, InitiatorOutput, Patience,
    Responder, ResponderInput, ResponderOutput, Shown,
};
use handfast_protocol::limits::{
    BUSY_RETRY_AFTER_MS, DURABLE_DEADLINE_MS, EXCHANGE_DEADLINE_MS, FRAME_BYTES_MAX, FRAME_DEADLINE_MS,
};
use handfast_protocol::stream::{Head, StreamKind};
use handfast_protocol::{Incarnation, Kind, NetworkId, RefuseCode};
use handfast_trust::Revision;
use quinn::{RecvStream, SendStream, VarInt};
use tokio::time::{Instant, timeout, timeout_at};

use crate::clock::unix_now;
use crate::engine::Engine;
use crate::registry::Link;

/// What an exchange told us, whichever end we were.
#[derive(Clone, Debug)]
pub struct Exchanged {
    /// The other end's run, once it has shown it.
    pub incarnation: Option<Incarnation>,
    /// The Answer said that both trust each other.
    pub granted: bool,
    /// Networks of whose expulsions the other end holds something else than we do.
    pub differing: Vec<NetworkId>,
    /// How it ended.
    pub result: Result<Option<Agreement>, ExchangeFault>,
}

impl Exchanged {
    /// A disk, ours or the peer's, does not keep up: nothing was agreed, and nothing taken back.
    pub fn says_later(&self) -> bool {
        let busy = |agreement: &Agreement| matches!(agreement.disposition, Disposition::Busy { .. });
        match &self.result {
            Ok(agreement) => agreement.as_ref().is_some_and(busy),
            Err(fault) => *fault == ExchangeFault::NotDurable,
        }
    }
}

/// Reads one frame body. `Ok(None)`: the stream ended between frames.
pub async fn read_frame(recv: &mut RecvStream, max: usize) -> Result<Option<Vec<u8>>, ExchangeFault> {
    let mut deframer = Deframer::new(max);
    loop {
        let missing = deframer.missing().map_err(|_: CodecFault| ExchangeFault::Peer(RefuseCode::BadFrame))?;
        if missing == 0 {
            return deframer.next_frame().map_err(|_| ExchangeFault::Peer(RefuseCode::BadFrame));
        }
        match recv.read_chunk(missing, true).await {
            Ok(Some(chunk)) => deframer.push(&chunk.bytes),
            Ok(None) if deframer.is_between_frames() => return Ok(None),
            Ok(None) | Err(_) => return Err(ExchangeFault::Closed),
        }
    }
}

/// [`read_frame`] within the frame deadline.
pub async fn read_frame_in_time(recv: &mut RecvStream, max: usize) -> Result<Option<Vec<u8>>, ExchangeFault> {
    timeout(Duration::from_millis(FRAME_DEADLINE_MS), read_frame(recv, max))
        .await
        .unwrap_or(Err(ExchangeFault::TimedOut))
}

pub async fn send(stream: &mut SendStream, bytes: &[u8]) -> Result<(), ExchangeFault> {
    match timeout(Duration::from_millis(FRAME_DEADLINE_MS), stream.write_all(bytes)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(ExchangeFault::Closed),
        Err(_) => Err(ExchangeFault::TimedOut),
    }
}

/// The refuse code on a stream that will not be served.
pub fn refuse(send: &mut SendStream, recv: &mut RecvStream, code: RefuseCode) {
    let code = VarInt::from_u32(code.code());
    // Both are refused only on streams that have ended, where there is nobody to tell.
    let _ = (send.reset(code), recv.stop(code));
}

/// The disk's patience, over all waits of one exchange together.
struct DiskPatience(Option<Instant>);

impl DiskPatience {
    async fn reached(&mut self, engine: &Engine, revision: u64) -> bool {
        let durable = engine.book.durable();
        if durable.current().0 >= revision {
            return true;
        }
        let until = *self.0.get_or_insert_with(|| Instant::now() + Duration::from_millis(DURABLE_DEADLINE_MS));
        matches!(timeout_at(until, durable.reached(Revision(revision))).await, Ok(Ok(())))
    }
}

/// What one end has seen so far.
#[derive(Default)]
struct Seen {
    incarnation: Option<Incarnation>,
    differing: Vec<NetworkId>,
    /// What the Answer says, whichever end it comes from; the opener has it when its receipt is sent.
    disposition: Option<Disposition>,
}

impl Seen {
    /// Before the rules see it: what the peer shows of its memberships is believed, or ends the exchange.
    fn shown(&mut self, engine: &Arc<Engine>, shown: &Shown) -> Result<(), ExchangeFault> {
        self.incarnation = Some(shown.incarnation);
        self.differing = engine.learn(shown)?;
        Ok(())
    }

    fn ended(self, result: Result<Option<Agreement>, ExchangeFault>) -> Exchanged {
        let Seen { incarnation, differing, disposition } = self;
        Exchanged { incarnation, granted: disposition == Some(Disposition::Granted), differing, result }
    }
}

/// Offers what we say of the peer, over a stream of `link`.
pub async fn initiate(engine: &Arc<Engine>, link: &Link) -> Exchanged {
    let whole = Duration::from_millis(EXCHANGE_DEADLINE_MS);
    let mut seen = Seen::default();
    let result = timeout(whole, initiate_within(engine, link, &mut seen)).await;
    seen.ended(result.unwrap_or(Err(ExchangeFault::TimedOut)).map(Some))
}

async fn initiate_within(engine: &Arc<Engine>, link: &Link, seen: &mut Seen) -> Result<Agreement, ExchangeFault> {
    let _turn = link.outbound_exchange.acquire().await.map_err(|_| ExchangeFault::Closed)?;
    let mut disk = DiskPatience(None);
    // Nothing of ours leaves before it is durable; what has changed while we waited is offered instead.
    let (parties, offer) = loop {
        let now = unix_now();
        let showing = engine.showing(engine.networks.standings_with(&link.peer, now));
        let (parties, offer, revision) = engine.book.offer(link.peer, &showing, now);
        if engine.book.durable().current() >= revision {
            break (parties, offer);
        }
        if !disk.reached(engine, revision.0).await {
            return Err(ExchangeFault::NotDurable);
        }
    };
    let (mut machine, frame) = Initiator::start(parties, &offer);
    let (mut out, mut input) = link.connection.open_bi().await.map_err(|_| ExchangeFault::Closed)?;
    let head = codec::frame(&Head::new(StreamKind::Exchange));
    send(&mut out, &[head, frame].concat()).await?;
    let mut next = InitiatorInput::from_read(read_frame_in_time(&mut input, FRAME_BYTES_MAX).await)?;
    loop {
        next = match machine.handle(next) {
            InitiatorOutput::Merge(shown) => {
                seen.shown(engine, &shown)?;
                let updated = engine.merge(link, &shown);
                InitiatorInput::Merged { holds: updated.holds, revision: updated.revision.0 }
            }
            InitiatorOutput::AwaitDurable(revision) => {
                if disk.reached(engine, revision).await {
                    InitiatorInput::Durable(revision.max(engine.book.durable().current().0))
                } else {
                    InitiatorInput::Deadline
                }
            }
            InitiatorOutput::Finish { receipt, result } => {
                debug_assert!(machine.is_finished());
                match receipt {
                    Some(receipt) => send(&mut out, &receipt).await?,
                    None => refuse(
                        &mut out,
                        &mut input,
                        result.as_ref().err().map_or(RefuseCode::Unspecified, |f| f.refuse_code()),
                    ),
                }
                // Waits until the receipt has arrived, so that closing the connection does not overtake it. The
                // peer may as well end the stream by itself.
                let _ = out.finish();
                let _ = timeout(Duration::from_millis(FRAME_DEADLINE_MS), out.stopped()).await;
                seen.disposition = result.ok().map(|agreement| agreement.disposition);
                return result;
            }
        };
    }
}

/// Answers an exchange that the peer opened on a stream of `link`.
pub async fn respond(engine: &Arc<Engine>, link: &Link, send: &mut SendStream, recv: &mut RecvStream) -> Exchanged {
    let whole = Duration::from_millis(EXCHANGE_DEADLINE_MS);
    let mut seen = Seen::default();
    let result = timeout(whole, respond_within(engine, link, (send, recv), &mut seen)).await;
    let result = result.unwrap_or(Err(ExchangeFault::TimedOut));
    if let Err(fault) = result
        && fault != ExchangeFault::NotDurable
    {
        refuse(send, recv, fault.refuse_code());
    }
    seen.ended(result.map(|()| None))
}

async fn respond_within(
    engine: &Arc<Engine>,
    link: &Link,
    (out, input): (&mut SendStream, &mut RecvStream),
    seen: &mut Seen,
) -> Result<(), ExchangeFault> {
    let mut machine = Responder::new(engine.book.parties(link.peer));
    let mut disk = DiskPatience(None);
    let mut asked: Option<(Box<Shown>, bool)> = None;
    let mut next = ResponderInput::from_read(read_frame_in_time(input, FRAME_BYTES_MAX).await)?;
    loop {
        next = match machine.handle(next) {
            ResponderOutput::Merge(shown) => {
                seen.shown(engine, &shown)?;
                let is_grant = shown.theirs.as_ref().is_some_and(|theirs| theirs.terms().kind == Kind::Grant);
                if is_grant && engine.degraded().is_some() && !engine.holds(&link.peer, &shown) {
                    // A grant waits for a disk that takes it; one that we hold already does not, nor does a revoke of
                    // our own that the peer proves.
                    engine.merge(link, &Shown { theirs: None, ..*shown });
                    busy(engine)
                } else {
                    let turned_away = engine.merge(link, &shown).turned_away;
                    decide(engine, link, asked.insert((shown, turned_away)), &mut seen.disposition)
                }
            }
            ResponderOutput::Reconsider => match &asked {
                Some(asked) => decide(engine, link, asked, &mut seen.disposition),
                None => busy(engine),
            },
            ResponderOutput::AwaitDurable(revision) => {
                if disk.reached(engine, revision).await {
                    ResponderInput::Durable(revision.max(engine.book.durable().current().0))
                } else {
                    ResponderInput::Deadline
                }
            }
            ResponderOutput::Answer(frame) => {
                send(out, &frame).await?;
                debug_assert_eq!(machine.patience(), Patience::Frame);
                ResponderInput::from_read(read_frame_in_time(input, FRAME_BYTES_MAX).await)?
            }
            ResponderOutput::Finish { answer, result } => {
                if let Some(answer) = answer {
                    send(out, &answer).await?;
                }
                let _ = out.finish();
                if let Some(holds) = result? {
                    engine.book.receipt(link.peer, holds);
                }
                return Ok(());
            }
        };
    }
}

/// What the rules say now. The latest word is the one that is sent.
fn decide(
    engine: &Engine,
    link: &Link,
    (shown, turned_away): &(Box<Shown>, bool),
    disposition: &mut Option<Disposition>,
) -> ResponderInput {
    let now = unix_now();
    let showing = engine.showing(engine.networks.standings_like(&shown.networks, now));
    let (terms, revision) = engine.book.answer(link.peer, shown, *turned_away, &showing, now);
    *disposition = Some(terms.disposition);
    ResponderInput::Decided { terms: Box::new(terms), revision: revision.0 }
}

fn busy(engine: &Engine) -> ResponderInput {
    let terms = AnswerTerms {
        disposition: Disposition::Busy { retry_after_ms: BUSY_RETRY_AFTER_MS as u32 },
        holds: None,
        statement: None,
        yours: None,
        incarnation: engine.incarnation,
        address: None,
        networks: Vec::new(),
    };
    ResponderInput::Decided { terms: Box::new(terms), revision: 0 }
}

/// A machine's input out of what reading a frame gave; a broken frame ends the exchange without the machine.
trait FromRead: Sized {
    fn frame(body: Vec<u8>) -> Self;
    const CLOSED: Self;
    const DEADLINE: Self;

    fn from_read(read: Result<Option<Vec<u8>>, ExchangeFault>) -> Result<Self, ExchangeFault> {
        match read {
            Ok(Some(body)) => Ok(Self::frame(body)),
            Ok(None) | Err(ExchangeFault::Closed) => Ok(Self::CLOSED),
            Err(ExchangeFault::TimedOut) => Ok(Self::DEADLINE),
            Err(fault) => Err(fault),
        }
    }
}

impl FromRead for InitiatorInput {
    fn frame(body: Vec<u8>) -> InitiatorInput {
        InitiatorInput::Frame(body)
    }
    const CLOSED: InitiatorInput = InitiatorInput::Closed;
    const DEADLINE: InitiatorInput = InitiatorInput::Deadline;
}

impl FromRead for ResponderInput {
    fn frame(body: Vec<u8>) -> ResponderInput {
        ResponderInput::Frame(body)
    }
    const CLOSED: ResponderInput = ResponderInput::Closed;
    const DEADLINE: ResponderInput = ResponderInput::Deadline;
}

//! What is left out before QUIC sees it: first packets that prove nothing, while nobody has time for them.
//!
//! To derive the keys of a first packet, only to say no with them, costs ten times as much as to take it from the socket. So
//! a socket asks here first. What is left out looks like a packet that was lost: its sender tries again by itself.
//!
//! Invariants:
//! * Only a datagram that begins with an Initial packet (RFC 9000, section 17.2.2) without a token, for a connection id
//!   that no endpoint here gave out, is ever left out: whoever has proven an address passes, and whoever has heard of us. The
//!   rest of a first flight that is longer than a datagram is judged like its beginning; it, too, comes again.
//! * An id that an endpoint here gave out passes only as long as it leads to a connection: one that somebody tried to begin
//!   a connection with is *spent* ([`Spent`]), and left out from then on. Whoever has seen such an id, as anybody can, gets
//!   nothing with it a second time.
//! * What cannot be read passes: QUIC judges it.
//!
//! Not here: who is left out (`admission`).

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, ConnectionId, ConnectionIdGenerator, UdpPoller};
use quinn_proto::HashedConnectionIdGenerator;

/// Longest connection id (RFC 9000, section 17.2).
const ID_BYTES_MAX: usize = 20;

/// Says of a source whether its first packets are to be left out now.
pub type Overlooks = Arc<dyn Fn(IpAddr) -> bool + Send + Sync>;

/// Ids that are remembered as spent; of more, the first ones are forgotten. About a megabyte.
const SPENT_MAX: usize = 16_384;

/// Ids that endpoints here gave out, and with which somebody tried to begin a connection. Clones are one.
#[derive(Clone, Debug, Default)]
pub(super) struct Spent(Arc<Mutex<SpentIds>>);

#[derive(Debug, Default)]
struct SpentIds {
    known: HashSet<ConnectionId>,
    /// In the order in which they came.
    order: VecDeque<ConnectionId>,
}

impl Spent {
    pub(super) fn add(&self, id: ConnectionId) {
        let mut ids = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !ids.known.insert(id) {
            return;
        }
        ids.order.push_back(id);
        if ids.order.len() > SPENT_MAX
            && let Some(oldest) = ids.order.pop_front()
        {
            ids.known.remove(&oldest);
        }
    }

    fn has(&self, id: &ConnectionId) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).known.contains(id)
    }
}

/// A socket behind it.
pub(super) struct Sieve {
    inner: Arc<dyn AsyncUdpSocket>,
    ids: HashedConnectionIdGenerator,
    spent: Spent,
    overlooks: Overlooks,
}

/// What a datagram begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Begins {
    /// A conversation, by one who has not been asked for a proof.
    New,
    /// Nothing: with an id of ours, which does not lead to a connection.
    Spent,
    /// Something else, perhaps with what proves an address, or that it has heard of us.
    Other,
}

impl Sieve {
    /// `ids` knows the connection ids that the endpoint gives out.
    pub(super) fn before(
        inner: Arc<dyn AsyncUdpSocket>,
        ids: HashedConnectionIdGenerator,
        spent: Spent,
        overlooks: Overlooks,
    ) -> Arc<dyn AsyncUdpSocket> {
        Arc::new(Sieve { inner, ids, spent, overlooks })
    }

    /// Datagrams that came together have one sender and one length each but the last.
    fn is_left_out(&self, received: &[u8], meta: &RecvMeta) -> bool {
        let begins = received.chunks(meta.stride.max(1)).map(|datagram| begins(datagram, &self.ids, &self.spent));
        let all = begins.reduce(|all, one| if all == one { all } else { Begins::Other });
        match all {
            Some(Begins::New) => (self.overlooks)(meta.addr.ip().to_canonical()),
            Some(Begins::Spent) => true,
            Some(Begins::Other) | None => false,
        }
    }
}

impl fmt::Debug for Sieve {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sieve").finish_non_exhaustive()
    }
}

impl AsyncUdpSocket for Sieve {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.inner.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.inner.try_send(transmit)
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let count = ready!(self.inner.poll_recv(context, buffers, meta))?;
        for (meta, buffer) in meta.iter_mut().zip(buffers.iter()).take(count) {
            if buffer.get(..meta.len).is_some_and(|received| self.is_left_out(received, meta)) {
                meta.len = 0;
            }
        }
        Poll::Ready(Ok(count))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }
}

/// Whether an endpoint with these ids gave it out.
pub(super) fn is_ours(id: &ConnectionId, ids: &HashedConnectionIdGenerator) -> bool {
    id.len() == ids.cid_len() && ids.validate(id).is_ok()
}

fn begins(datagram: &[u8], ids: &HashedConnectionIdGenerator, spent: &Spent) -> Begins {
    // Long header, fixed bit, type 0; four bytes of version; two ids with their lengths; the length of the token, where
    // none is one byte (RFC 9000, sections 17.2.2 and 16).
    let is_initial = datagram.first().is_some_and(|first| first & 0xf0 == 0xc0);
    let Some((to, rest)) = datagram.get(5..).and_then(id) else { return Begins::Other };
    let Some((_, rest)) = id(rest) else { return Begins::Other };
    if !is_initial || rest.first() != Some(&0) {
        return Begins::Other;
    }
    let to = ConnectionId::new(to);
    match is_ours(&to, ids) {
        false => Begins::New,
        true if spent.has(&to) => Begins::Spent,
        true => Begins::Other,
    }
}

/// A connection id and what follows it.
fn id(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first()?;
    rest.split_at_checked(usize::from(*length)).filter(|(id, _)| id.len() <= ID_BYTES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: u64 = 7;

    fn ids() -> HashedConnectionIdGenerator {
        HashedConnectionIdGenerator::from_key(KEY)
    }

    /// A datagram with this first byte, for `to`, with a token of `token` bytes.
    fn datagram(first: u8, to: &[u8], token: u8) -> Vec<u8> {
        let to_length = u8::try_from(to.len()).unwrap();
        let token_bytes = vec![9; usize::from(token)];
        [&[first, 0, 0, 0, 1, to_length][..], to, &[3, 1, 2, 3], &[token], &token_bytes, &[0x44, 0x9e, 7, 7]].concat()
    }

    #[test]
    fn only_first_packets_that_prove_nothing_are_left_out() {
        let ours = ids().generate_cid();
        let theirs = [5; 20];
        let begins = |datagram: &[u8]| begins(datagram, &ids(), &Spent::default());
        let check = |datagram: &[u8], left_out: bool| {
            let expected = if left_out { Begins::New } else { Begins::Other };
            assert_eq!(begins(datagram), expected, "{datagram:?}");
        };
        check(&datagram(0xc3, &theirs, 0), true);
        check(&datagram(0xc0, &theirs[..8], 0), true);
        check(&datagram(0xc3, &theirs, 40), false);
        check(&datagram(0xc3, &ours, 0), false);
        check(&datagram(0xe3, &theirs, 0), false);
        check(&datagram(0x43, &theirs, 0), false);
        check(&datagram(0xc3, &[5; 21], 0), false);
        let whole = datagram(0xc3, &theirs, 0);
        // Up to the length of the token, which decides.
        (0..whole.len() - 4).for_each(|length| check(&whole[..length], false));
    }

    #[test]
    fn an_id_of_ours_that_leads_nowhere_is_left_out_from_then_on() {
        let spent = Spent::default();
        let generator = |n: usize| (0..n).map(|_| ids().generate_cid()).collect::<Vec<_>>();
        let given = generator(SPENT_MAX + 1);
        let first = |id: &ConnectionId| begins(&datagram(0xc3, id, 0), &ids(), &spent);
        assert_eq!(first(&given[0]), Begins::Other, "it may lead to a connection");
        given.iter().for_each(|id| spent.add(*id));
        given.iter().for_each(|id| spent.add(*id));
        assert!(given[2..].iter().all(|id| first(id) == Begins::Spent));
        assert!(spent.0.lock().unwrap().order.len() <= SPENT_MAX, "and no more are remembered");
        // With a token, and in other packets, it is whatever QUIC makes of it.
        assert_eq!(begins(&datagram(0xc3, &given[9], 40), &ids(), &spent), Begins::Other);
        assert_eq!(begins(&datagram(0xe3, &given[9], 0), &ids(), &spent), Begins::Other);
    }
}

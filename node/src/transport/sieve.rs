//! What is left out before QUIC sees it: first packets that prove nothing, while nobody has time for them.
//!
//! To derive the keys of a first packet, only to say no with them, costs ten times as much as to take it from the socket. So
//! a socket asks here first. What is left out looks like a packet that was lost: its sender tries again by itself.
//!
//! Invariants:
//! * Only a datagram that begins with an Initial packet (RFC 9000, section 17.2.2) without a token, for a connection id
//!   that no endpoint here gave out, is ever left out: whoever has proven an address passes, and whoever has heard of us. The
//!   rest of a first flight that is longer than a datagram is judged like its beginning; it, too, comes again.
//! * What cannot be read passes: QUIC judges it.
//!
//! Not here: who is left out (`admission`).

use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, ConnectionId, ConnectionIdGenerator, UdpPoller};
use quinn_proto::HashedConnectionIdGenerator;

/// Longest connection id (RFC 9000, section 17.2).
const ID_BYTES_MAX: usize = 20;

/// Says of a source whether its first packets are to be left out now.
pub type Overlooks = Arc<dyn Fn(IpAddr) -> bool + Send + Sync>;

/// A socket behind it.
pub(super) struct Sieve {
    inner: Arc<dyn AsyncUdpSocket>,
    ids: HashedConnectionIdGenerator,
    overlooks: Overlooks,
}

impl Sieve {
    /// `ids` knows the connection ids that the endpoint gives out.
    pub(super) fn before(
        inner: Arc<dyn AsyncUdpSocket>,
        ids: HashedConnectionIdGenerator,
        overlooks: Overlooks,
    ) -> Arc<dyn AsyncUdpSocket> {
        Arc::new(Sieve { inner, ids, overlooks })
    }

    /// Datagrams that came together have one sender and one length each but the last.
    fn is_left_out(&self, received: &[u8], meta: &RecvMeta) -> bool {
        let mut datagrams = received.chunks(meta.stride.max(1));
        datagrams.all(|datagram| is_first(datagram, &self.ids)) && (self.overlooks)(meta.addr.ip().to_canonical())
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

/// True for the first packet of a conversation, from whoever has not been asked for a proof.
fn is_first(datagram: &[u8], ids: &HashedConnectionIdGenerator) -> bool {
    // Long header, fixed bit, type 0; four bytes of version; two ids with their lengths; the length of the token, where
    // none is one byte (RFC 9000, sections 17.2.2 and 16).
    let is_initial = datagram.first().is_some_and(|first| first & 0xf0 == 0xc0);
    let Some((to, rest)) = datagram.get(5..).and_then(id) else { return false };
    let Some((_, rest)) = id(rest) else { return false };
    let is_ours = to.len() == ids.cid_len() && ids.validate(&ConnectionId::new(to)).is_ok();
    is_initial && rest.first() == Some(&0) && !is_ours
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
        let check = |datagram: &[u8], left_out: bool| assert_eq!(is_first(datagram, &ids()), left_out, "{datagram:?}");
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
}

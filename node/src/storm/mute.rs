//! Sockets of peers that begin a QUIC handshake and do not go on with it: what a slow attacker looks like before TLS has
//! proven anybody.
//!
//! [`Muteness::Deaf`] sends and never hears: its first packet is all that the node gets, again and again.
//! [`Muteness::AfterInitial`] hears, and sends nothing but Initial packets (RFC 9000, section 17.2.2): TLS hangs.
//! [`Muteness::After`] is as any socket until it has sent so many datagrams, and from then on nothing leaves it.

use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};

/// What is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Muteness {
    Deaf,
    AfterInitial,
    After { datagrams: u32 },
}

/// A socket that keeps something back.
pub struct MuteSocket {
    inner: Arc<dyn AsyncUdpSocket>,
    muteness: Muteness,
    sent: AtomicU32,
}

impl MuteSocket {
    /// Puts `inner` behind its muteness.
    pub fn wrap(inner: Arc<dyn AsyncUdpSocket>, muteness: Muteness) -> Arc<dyn AsyncUdpSocket> {
        Arc::new(MuteSocket { inner, muteness, sent: AtomicU32::new(0) })
    }
}

impl fmt::Debug for MuteSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MuteSocket").field("muteness", &self.muteness).finish_non_exhaustive()
    }
}

impl AsyncUdpSocket for MuteSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.inner.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let is_kept_back = match self.muteness {
            Muteness::Deaf => false,
            Muteness::AfterInitial => !is_initial_alone(transmit.contents),
            Muteness::After { datagrams } => self.sent.fetch_add(1, Ordering::Relaxed) >= datagrams,
        };
        if is_kept_back { Ok(()) } else { self.inner.try_send(transmit) }
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let received = self.inner.poll_recv(context, buffers, meta);
        match (self.muteness, received) {
            (Muteness::Deaf, Poll::Ready(Ok(count))) => {
                // Nothing was heard, in as many pieces.
                meta.iter_mut().take(count).for_each(|meta| meta.len = 0);
                Poll::Ready(Ok(count))
            }
            (_, received) => received,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

/// True for a datagram whose first packet is an Initial one and fills it, but for padding inside the packet.
fn is_initial_alone(datagram: &[u8]) -> bool {
    after_initial(datagram).is_some_and(<[u8]>::is_empty)
}

/// What follows the Initial packet that a datagram begins with.
fn after_initial(datagram: &[u8]) -> Option<&[u8]> {
    let (first, rest) = datagram.split_first()?;
    // Long header, fixed bit, type 0; then the version.
    if first & 0xf0 != 0xc0 {
        return None;
    }
    let rest = rest.get(4..)?;
    let rest = skip(rest, |rest| rest.split_first().map(|(length, rest)| (usize::from(*length), rest)))?;
    let rest = skip(rest, |rest| rest.split_first().map(|(length, rest)| (usize::from(*length), rest)))?;
    let rest = skip(rest, variable_length)?;
    skip(rest, variable_length)
}

fn skip(bytes: &[u8], length: impl Fn(&[u8]) -> Option<(usize, &[u8])>) -> Option<&[u8]> {
    let (length, rest) = length(bytes)?;
    rest.get(length..)
}

/// A variable-length integer (RFC 9000, section 16).
fn variable_length(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let first = *bytes.first()?;
    let size = 1usize << (first >> 6);
    let (number, rest) = bytes.split_at_checked(size)?;
    let value = number
        .iter()
        .enumerate()
        .fold(0u64, |value, (place, byte)| value << 8 | u64::from(if place == 0 { byte & 0x3f } else { *byte }));
    Some((usize::try_from(value).ok()?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_initial_packets_alone_are_taken_for_it() {
        // Header, version 1, a connection id of 2 and one of 0 bytes, no token, a length of 3 in two bytes.
        let initial = [0xc3, 0, 0, 0, 1, 2, 9, 9, 0, 0, 0x40, 3, 7, 7, 7];
        assert!(is_initial_alone(&initial));
        let coalesced = [&initial[..], &[0xe0, 0, 0, 0, 1]].concat();
        assert!(!is_initial_alone(&coalesced));
        let mut handshake = initial;
        handshake[0] = 0xe3;
        for datagram in [&handshake[..], &initial[..13], &initial[..6], &[0x40, 1, 2], &[]] {
            assert!(!is_initial_alone(datagram), "{datagram:?}");
        }
    }
}

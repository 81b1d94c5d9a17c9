//! Application streams: what trusted peers carry over a session, for programs that embed a node.
//!
//! Invariant NOW: every read and write looks at the link's orders first and while it waits. From the instant in which a
//! revoke cuts the link, nothing more is read from or written to the stream; it is reset.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use handfast_protocol::{PeerId, RefuseCode, ServiceName};
use quinn::{RecvStream, SendStream};
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};

use crate::driver::refuse;
use crate::registry::Orders;

/// Streams that wait for their service to take them; more are refused.
const BACKLOG_MAX: usize = 64;

/// Why a service stream does not go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ServiceFault {
    /// Trust ended, or the node is stopping.
    #[error("the session was cut")]
    Cut,
    /// The other end closed or reset the stream, or the connection is gone.
    #[error("the stream has ended")]
    Ended,
}

/// One bidirectional application stream with a trusted peer.
pub struct ServiceStream {
    /// Who is at the other end.
    pub peer: PeerId,
    send: SendStream,
    recv: RecvStream,
    orders: watch::Receiver<Orders>,
    _place: OwnedSemaphorePermit,
}

impl ServiceStream {
    pub(crate) fn new(
        peer: PeerId,
        (send, recv): (SendStream, RecvStream),
        orders: watch::Receiver<Orders>,
        place: OwnedSemaphorePermit,
    ) -> ServiceStream {
        ServiceStream { peer, send, recv, orders, _place: place }
    }

    /// Reads up to `buffer.len()` bytes; 0 at the end of the stream.
    ///
    /// # Errors
    /// [`ServiceFault`].
    pub async fn read(&mut self, buffer: &mut [u8]) -> Result<usize, ServiceFault> {
        let read = tokio::select! {
            biased;
            _ = self.orders.wait_for(|orders| orders.cut) => Err(ServiceFault::Cut),
            read = self.recv.read(buffer) => read.map(|read| read.unwrap_or(0)).map_err(|_| ServiceFault::Ended),
        };
        self.unless_cut(read)
    }

    /// Writes all of `bytes`.
    ///
    /// # Errors
    /// [`ServiceFault`].
    pub async fn write_all(&mut self, bytes: &[u8]) -> Result<(), ServiceFault> {
        let written = tokio::select! {
            biased;
            _ = self.orders.wait_for(|orders| orders.cut) => Err(ServiceFault::Cut),
            written = self.send.write_all(bytes) => written.map_err(|_| ServiceFault::Ended),
        };
        self.unless_cut(written)
    }

    /// Says that nothing more will be written.
    pub fn finish(&mut self) {
        // Refused only where the stream has ended already.
        let _ = self.send.finish();
    }

    /// A cut that came while the bytes did wins over the bytes.
    fn unless_cut<T>(&mut self, result: Result<T, ServiceFault>) -> Result<T, ServiceFault> {
        if matches!(result, Err(ServiceFault::Cut)) || self.orders.borrow().cut {
            refuse(&mut self.send, &mut self.recv, RefuseCode::NotAuthorised);
            return Err(ServiceFault::Cut);
        }
        result
    }
}

/// Who takes which service's streams.
#[derive(Default)]
pub struct Services {
    takers: Mutex<HashMap<ServiceName, mpsc::Sender<ServiceStream>>>,
}

impl Services {
    /// Offers `name` to trusted peers whose scope allows it. The streams come out of the receiver; dropping it ends the
    /// offer.
    pub fn offer(&self, name: ServiceName) -> mpsc::Receiver<ServiceStream> {
        let (taker, streams) = mpsc::channel(BACKLOG_MAX);
        self.takers.lock().unwrap_or_else(PoisonError::into_inner).insert(name, taker);
        streams
    }

    /// The taker of `name`, while somebody takes.
    pub(crate) fn taker(&self, name: &ServiceName) -> Option<mpsc::Sender<ServiceStream>> {
        let mut takers = self.takers.lock().unwrap_or_else(PoisonError::into_inner);
        if takers.get(name).is_some_and(mpsc::Sender::is_closed) {
            takers.remove(name);
        }
        takers.get(name).cloned()
    }
}

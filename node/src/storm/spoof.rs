//! First packets of handshakes that never go on, from addresses that prove nothing: recorded once, sent again and again.
//! One costs the generator a system call where a dial costs it a key exchange, so that a generator on the node's own
//! machine can send many times what the node could serve.
//!
//! A first packet is valid by itself (RFC 9000, section 17.2.2): a node that takes it does half of a handshake's work.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use handfast_protocol::{PeerId, SecretKey};
use tokio::task::JoinSet;

use crate::transport::Callers;

/// How long recording may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// First packets that are on their way at once.
const AT_ONCE: usize = 32;
/// A first packet is padded to 1,200 bytes (RFC 9000, section 14.1), and none is much longer.
const DATAGRAM_BYTES_MAX: usize = 2_400;

/// First packets that a dialler of `peer` sends, one for each of `count` dials: taken at a socket that never answers.
///
/// # Errors
/// If no socket can be had, or nothing is sent.
pub async fn record(callers: &Callers, peer: &PeerId, count: usize) -> io::Result<Vec<Vec<u8>>> {
    let trap = tokio::net::UdpSocket::bind("127.0.0.1:0").await?;
    let at = trap.local_addr()?;
    let mut dials = JoinSet::new();
    let mut taken = BTreeMap::new();
    let mut buffer = [0; DATAGRAM_BYTES_MAX];
    let listen = async {
        for number in 0..count {
            let (callers, peer) = (callers.clone(), *peer);
            let mut seed = [0x1f; 32];
            seed[..8].copy_from_slice(&(number as u64).to_le_bytes());
            dials.spawn(async move { callers.dial(number, &SecretKey::from_seed(&seed), &peer, at, PATIENCE).await });
            // No more at once than fit into a socket's buffer.
            while taken.len() + AT_ONCE <= number || (number + 1 == count && taken.len() < count) {
                let length = trap.recv(&mut buffer).await?;
                // Destination connection id: one for each dial; a dialler that repeats itself keeps it.
                let datagram = &buffer[..length];
                if let Some(id) = datagram.get(5).and_then(|length| datagram.get(6..6 + usize::from(*length))) {
                    taken.entry(id.to_vec()).or_insert_with(|| datagram.to_vec());
                }
            }
        }
        Ok::<(), io::Error>(())
    };
    let listened = tokio::time::timeout(PATIENCE, listen).await;
    dials.shutdown().await;
    listened.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
    Ok(taken.into_values().collect())
}

/// Sends recorded packets from many sockets.
pub struct Spoofers {
    packets: Vec<Vec<u8>>,
    sockets: Vec<UdpSocket>,
}

impl Spoofers {
    /// # Errors
    /// If a socket cannot be bound.
    pub fn new(packets: Vec<Vec<u8>>, from: &[SocketAddr]) -> io::Result<Spoofers> {
        let bound = |at: &SocketAddr| {
            let socket = UdpSocket::bind(at)?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        };
        Ok(Spoofers { packets, sockets: from.iter().map(bound).collect::<io::Result<_>>()? })
    }

    /// Sends one of them. What does not fit into the system's buffers is lost, as elsewhere.
    pub fn send(&self, number: u64, to: SocketAddr) {
        let place = |count: usize, number: u64| usize::try_from(number % count.max(1) as u64).unwrap_or_default();
        let packet = self.packets.get(place(self.packets.len(), number));
        // Another packet for each socket at each round.
        let round = number / self.packets.len().max(1) as u64;
        if let (Some(packet), Some(socket)) = (packet, self.sockets.get(place(self.sockets.len(), number + round))) {
            let _ = socket.send_to(packet, to);
        }
    }
}

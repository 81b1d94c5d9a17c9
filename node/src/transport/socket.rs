//! UDP sockets: families, buffers, and errors that name the address.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, ipproto, socket_with, sockopt};

use super::ending::TransportError;

/// A bound socket.
#[derive(Debug)]
pub(super) struct Bound {
    pub(super) socket: UdpSocket,
    pub(super) local: SocketAddr,
    /// True for an IPv4 socket and for one of both families.
    pub(super) takes_ipv4: bool,
}

/// Binds all of `listen`, or nothing.
pub(super) fn bind_all(listen: &[SocketAddr], buffer_bytes: usize) -> Result<Vec<Bound>, TransportError> {
    if listen.is_empty() {
        return Err(TransportError::NoAddress);
    }
    let bind_one = |address: &SocketAddr| {
        let shares_port = |other: &SocketAddr| other.is_ipv4() && other.port() == address.port() && other.port() != 0;
        let both_families = address.is_ipv6() && address.ip().is_unspecified() && !listen.iter().any(shares_port);
        match bound(*address, both_families) {
            Err(errno) if both_families && is_without_ipv6(errno) => {
                let ipv4 = SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port()));
                tracing::info!(%address, instead = %ipv4, "this machine has no IPv6");
                bound(ipv4, false).map_err(|errno| refusal(ipv4, errno))
            }
            outcome => outcome.map_err(|errno| refusal(*address, errno)),
        }
    };
    let bound = listen.iter().map(bind_one).collect::<Result<Vec<_>, _>>()?;
    for socket in &bound {
        ask_for_buffers(socket, buffer_bytes);
    }
    Ok(bound)
}

fn bound(address: SocketAddr, both_families: bool) -> Result<Bound, Errno> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::DGRAM, flags, Some(ipproto::UDP))?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, !both_families)?;
    }
    bind(&socket, &address)?;
    let socket = UdpSocket::from(socket);
    let local = socket.local_addr().map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    Ok(Bound { socket, local, takes_ipv4: address.is_ipv4() || both_families })
}

fn is_without_ipv6(errno: Errno) -> bool {
    matches!(errno, Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL)
}

fn refusal(address: SocketAddr, errno: Errno) -> TransportError {
    match errno {
        Errno::ADDRINUSE => TransportError::AddressInUse { address },
        Errno::ADDRNOTAVAIL => TransportError::NotOurAddress { address },
        Errno::ACCESS | Errno::PERM => TransportError::NotPermitted { address },
        errno => TransportError::Socket { address, source: io::Error::from(errno) },
    }
}

/// What a socket has for packets that wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffers {
    pub receive_bytes: usize,
    pub send_bytes: usize,
}

/// Asks for buffers and says what was granted: the system caps it (on Linux `net.core.rmem_max` and `wmem_max`), and a
/// burst that does not fit is lost, but nothing fails.
///
/// # Errors
/// Where the system does not let itself be asked: its default stays.
pub fn buffers_granted(socket: &UdpSocket, bytes: usize) -> io::Result<Buffers> {
    sockopt::set_socket_recv_buffer_size(socket, bytes)?;
    sockopt::set_socket_send_buffer_size(socket, bytes)?;
    // Linux reports twice what it grants: the other half is for its own bookkeeping (socket(7)).
    let receive_bytes = sockopt::socket_recv_buffer_size(socket)? / 2;
    Ok(Buffers { receive_bytes, send_bytes: sockopt::socket_send_buffer_size(socket)? / 2 })
}

fn ask_for_buffers(bound: &Bound, bytes: usize) {
    match buffers_granted(&bound.socket, bytes) {
        Ok(Buffers { receive_bytes, send_bytes }) => {
            tracing::info!(address = %bound.local, asked_bytes = bytes, receive_bytes, send_bytes, "socket buffers");
        }
        Err(error) => {
            tracing::warn!(address = %bound.local, %error, "the system's default socket buffers stay");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bind_texts(texts: &[String]) -> Result<Vec<Bound>, TransportError> {
        let listen: Vec<SocketAddr> = texts.iter().map(|text| text.parse().unwrap()).collect();
        bind_all(&listen, 64 * 1024)
    }

    #[test]
    fn a_port_that_is_taken_is_named() {
        let first = bind_texts(&["127.0.0.1:0".into()]).unwrap();
        let refused = bind_texts(&[first[0].local.to_string()]).unwrap_err();
        assert!(matches!(refused, TransportError::AddressInUse { address } if address == first[0].local), "{refused}");
        assert!(refused.to_string().contains(&first[0].local.to_string()));
    }

    #[test]
    fn addresses_of_others_and_none_at_all_are_refused() {
        let elsewhere = bind_texts(&["192.0.2.1:0".into()]).unwrap_err();
        assert!(matches!(elsewhere, TransportError::NotOurAddress { .. }), "{elsewhere}");
        assert!(matches!(bind_texts(&[]), Err(TransportError::NoAddress)));
    }

    #[test]
    fn the_unspecified_ipv6_address_takes_ipv4_too_unless_the_list_has_its_own() {
        let both = bind_texts(&["[::]:0".into()]).unwrap();
        assert!(both[0].takes_ipv4);
        if both[0].local.is_ipv4() {
            return; // Without IPv6 there is one family.
        }
        // A port that was free a moment ago may be another test's by now.
        let apart = || {
            let port = bind_texts(&["[::]:0".into()]).unwrap()[0].local.port();
            bind_texts(&[format!("[::]:{port}"), format!("0.0.0.0:{port}")]).ok()
        };
        let apart = (0..100).find_map(|_| apart()).unwrap();
        let takes_ipv4: Vec<bool> = apart.iter().map(|socket| socket.takes_ipv4).collect();
        assert_eq!(takes_ipv4, [false, true]);
    }
}

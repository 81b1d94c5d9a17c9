//! Where this node can be reached, as far as it can tell by itself.
//!
//! What the operator advertises; else the addresses that it listens on. One that listens everywhere names the address
//! from which the system would send to the world: a UDP socket is connected to an address that is reserved for
//! documentation (RFC 5737, RFC 3849), which sends nothing, and asked for its own. Without a route, loopback.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use handfast_protocol::Address;
use handfast_protocol::limits::ADDRESSES_MAX;

const SOMEWHERE_V4: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 9);
const SOMEWHERE_V6: SocketAddr = SocketAddr::new(IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)), 9);

/// Best first; none with port 0, which the system has not chosen yet.
pub(crate) fn addresses(advertise: &[SocketAddr], listen: &[SocketAddr]) -> Vec<Address> {
    let mut list: Vec<Address> = Vec::new();
    let named = if advertise.is_empty() { listen } else { advertise };
    for at in named {
        let found = if at.ip().is_unspecified() { own_ips(at.is_ipv6()) } else { vec![at.ip()] };
        for ip in found {
            let address = Address::from(SocketAddr::new(ip, at.port()));
            if address.is_dialable() && !list.contains(&address) {
                list.push(address);
            }
        }
    }
    list.truncate(ADDRESSES_MAX);
    list
}

/// The addresses that `0.0.0.0`, or `[::]` with IPv4, stands for.
fn own_ips(both: bool) -> Vec<IpAddr> {
    let mut ips: Vec<IpAddr> = source_towards(SOMEWHERE_V4).into_iter().collect();
    if both {
        ips.extend(source_towards(SOMEWHERE_V6));
    }
    if ips.is_empty() {
        ips.push(IpAddr::V4(Ipv4Addr::LOCALHOST));
    }
    ips
}

fn source_towards(somewhere: SocketAddr) -> Option<IpAddr> {
    let any: SocketAddr =
        if somewhere.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(somewhere).ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|ip| !ip.is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_named_is_taken_and_everywhere_becomes_somewhere() {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let named = [at("192.0.2.7:4433"), at("[2001:db8::7]:1")];
        assert_eq!(addresses(&[], &named), named.map(Address::from));
        assert_eq!(addresses(&named[..1], &[at("[::]:4433")]), [Address::from(named[0])]);
        assert_eq!(addresses(&[], &[at("127.0.0.1:0")]), []);
        let everywhere = addresses(&[], &[at("[::]:4433"), at("0.0.0.0:4433")]);
        assert!(!everywhere.is_empty() && everywhere.iter().all(Address::is_dialable), "{everywhere:?}");
    }
}

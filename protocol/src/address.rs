//! Where a peer says that it can be reached: signed, bounded, numbered.
//!
//! A record that comes over a connection of its own peer is authenticated by TLS; its signature is checked before it
//! is relayed, or when somebody else brought it.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::codec;
use crate::identity::{PeerId, SecretKey};
use crate::limits::ADDRESSES_MAX;
use crate::statement::{Signature, StatementFault, UnixMillis};

const ADDRESS_DOMAIN: &[u8] = b"handfast/1/address";

/// An IP address and a UDP port. One encoding for each: IPv4 as IPv4-mapped IPv6 (RFC 4291, section 2.5.5.2).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Address {
    #[serde(with = "codec::words")]
    ip: [u8; 16],
    port: u16,
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Address {
        let ip = match address.ip() {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        };
        Address { ip: ip.octets(), port: address.port() }
    }
}

impl From<Address> for SocketAddr {
    fn from(address: Address) -> SocketAddr {
        SocketAddr::new(Ipv6Addr::from(address.ip).to_canonical(), address.port)
    }
}

impl Address {
    /// True for what can be dialled at all: a port, and neither the unspecified nor a multicast or broadcast address.
    pub fn is_dialable(&self) -> bool {
        let at = SocketAddr::from(*self);
        let broadcast = matches!(at.ip(), IpAddr::V4(v4) if v4.is_broadcast());
        at.port() != 0 && !at.ip().is_unspecified() && !at.ip().is_multicast() && !broadcast
    }

    /// True for addresses that mean another machine on every machine: taken from remote peers only if configured.
    pub fn is_local_only(&self) -> bool {
        match SocketAddr::from(*self).ip() {
            IpAddr::V4(v4) => v4.is_loopback() || v4.is_link_local(),
            IpAddr::V6(v6) => v6.is_loopback() || v6.is_unicast_link_local(),
        }
    }
}

/// The addresses of one peer: at most [`ADDRESSES_MAX`], best first.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AddressRecord {
    /// Whose addresses these are.
    pub peer: PeerId,
    /// Where to dial, best first.
    #[serde(deserialize_with = "codec::bounded_list::<_, _, ADDRESSES_MAX>")]
    pub addresses: Vec<Address>,
    /// Number of the record; greater replaces.
    pub epoch: u64,
    /// From when on nobody should rely on it, by the peer's clock.
    pub expires_at: UnixMillis,
}

impl AddressRecord {
    fn message(&self) -> Vec<u8> {
        let mut message = ADDRESS_DOMAIN.to_vec();
        codec::encode_into(self, &mut message);
        message
    }

    /// Signs the record with the key of its peer.
    ///
    /// # Errors
    /// [`StatementFault::WrongParty`] when `key` is another's.
    pub fn sign(mut self, key: &SecretKey) -> Result<SignedAddressRecord, StatementFault> {
        if key.peer_id() != self.peer {
            return Err(StatementFault::WrongParty);
        }
        self.addresses.truncate(ADDRESSES_MAX);
        let signature = Signature(key.sign(&self.message()));
        Ok(SignedAddressRecord { record: self, signature })
    }
}

/// An address record with its peer's signature, unchecked until [`SignedAddressRecord::verify`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SignedAddressRecord {
    /// The record.
    pub record: AddressRecord,
    /// The peer's signature over the domain and the record's canonical encoding.
    pub signature: Signature,
}

impl SignedAddressRecord {
    /// True when the record's own peer signed it.
    pub fn verify(&self) -> bool {
        self.record.peer.verify(&self.record.message(), &self.signature.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::ADDRESS_RECORD_BYTES_MAX;

    fn record(count: u16) -> SignedAddressRecord {
        let key = SecretKey::from_seed(&[1; 32]);
        let at = |i: u16| Address::from(SocketAddr::from(([192, 0, 2, 1], 1000 + i)));
        let record = AddressRecord {
            peer: key.peer_id(),
            addresses: (0..count).map(at).collect(),
            epoch: 3,
            expires_at: UnixMillis(9),
        };
        record.sign(&key).unwrap()
    }

    #[test]
    fn addresses_survive_the_round_trip() {
        for text in ["192.0.2.1:4433", "[2001:db8::1]:4433"] {
            let at: SocketAddr = text.parse().unwrap();
            assert_eq!(SocketAddr::from(Address::from(at)), at);
        }
    }

    #[test]
    fn what_nobody_should_dial_is_known() {
        for bad in ["0.0.0.0:1", "224.0.0.1:1", "255.255.255.255:1", "[::]:1", "[ff02::1]:1", "192.0.2.1:0"] {
            assert!(!Address::from(bad.parse::<SocketAddr>().unwrap()).is_dialable(), "{bad}");
        }
        assert!(Address::from(SocketAddr::from(([127, 0, 0, 2], 1))).is_local_only());
    }

    #[test]
    fn records_are_bounded_and_signed() {
        let full = record(20);
        assert_eq!(full.record.addresses.len(), ADDRESSES_MAX);
        assert_eq!(codec::encode(&full).len(), ADDRESS_RECORD_BYTES_MAX);
        assert!(full.verify());
        let mut other = full;
        other.record.epoch += 1;
        assert!(!other.verify());
    }
}

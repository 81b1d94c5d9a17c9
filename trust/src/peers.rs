//! Where peers were found: addresses and when they were last seen. Losing it is safe; it is written lazily.
//!
//! Invariants (BOUND): [`DIAL_ADDRESSES_MAX`] addresses a peer in all. What an operator typed and what the peer signed
//! are never displaced by an address that was merely observed.

use handfast_protocol::limits::ADDRESSES_MAX;
use handfast_protocol::{Address, PeerId, SignedAddressRecord, UnixMillis};
use serde::{Deserialize, Serialize};

use crate::record::{FileKind, Record, RecordFault};
use crate::store::Store;
use crate::table::Urgency;
use crate::trust_record::{decode_peer, decode_versioned, encode_versioned};

/// Addresses that one dial attempt may use.
pub const DIAL_ADDRESSES_MAX: usize = 4;

/// What is known of where a peer is.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct PeerRecord {
    /// What the operator typed, as typed: `HOST:PORT`. Resolved again at each dial.
    pub typed: Option<String>,
    /// What the peer says of itself: addresses, number, end.
    pub signed: Vec<Address>,
    /// Number of the signed record; greater replaces.
    pub signed_epoch: u64,
    /// From where it last dialled us or where we last reached it.
    pub observed: Option<Address>,
    /// When it last authenticated.
    pub last_seen: Option<UnixMillis>,
}

impl Record for PeerRecord {
    type Key = PeerId;
    type Index = ();
    const KIND: FileKind = FileKind::Peers;

    fn encode_key(key: &PeerId, out: &mut Vec<u8>) {
        out.extend_from_slice(key.as_bytes());
    }

    fn decode_key(bytes: &[u8]) -> Result<PeerId, RecordFault> {
        decode_peer(bytes)
    }

    fn encode(&self, out: &mut Vec<u8>) {
        encode_versioned(self, out);
    }

    fn decode(_: &PeerId, bytes: &[u8]) -> Result<PeerRecord, RecordFault> {
        decode_versioned(bytes)
    }
}

impl PeerRecord {
    /// Takes the peer's own address record, if it is newer. `local_too`: loopback and link-local addresses count.
    pub fn take_signed(&mut self, signed: &SignedAddressRecord, local_too: bool) -> bool {
        if signed.record.epoch <= self.signed_epoch {
            return false;
        }
        self.signed_epoch = signed.record.epoch;
        let usable = |address: &&Address| address.is_dialable() && (local_too || !address.is_local_only());
        self.signed = signed.record.addresses.iter().filter(usable).take(ADDRESSES_MAX).copied().collect();
        true
    }

    /// Where to dial apart from what was typed, best first, each once.
    pub fn dialable(&self) -> Vec<Address> {
        let mut list = Vec::with_capacity(DIAL_ADDRESSES_MAX);
        for address in self.signed.iter().chain(&self.observed) {
            if !list.contains(address) && list.len() < DIAL_ADDRESSES_MAX {
                list.push(*address);
            }
        }
        list
    }
}

/// Changes what is known of where `peer` is. Written within a second, whatever else happens.
pub fn update(store: &Store<PeerRecord>, peer: PeerId, change: impl FnOnce(&mut PeerRecord)) {
    let mut record = store.read(|table| table.get(&peer).cloned()).map_or_else(PeerRecord::default, |r| (*r).clone());
    let before = record.clone();
    change(&mut record);
    if record != before {
        store.write(|table| table.put(peer, record, Urgency::Lazy));
    }
}

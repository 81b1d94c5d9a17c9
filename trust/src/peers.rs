//! Where peers were found: addresses and when they were last seen. Losing it is safe; it is written lazily.
//!
//! Invariants (BOUND): [`ADDRESSES_MAX`] signed addresses, one that was observed, and one text of
//! [`TYPED_BYTES_MAX`] a peer; [`DIAL_ADDRESSES_MAX`] of them for one dial; [`PEERS_MAX`] peers besides those
//! that are trusted, whose last address never goes. What an operator typed and what the peer
//! signed are never displaced by an address that was merely observed.

use std::sync::Arc;

use handfast_protocol::limits::ADDRESSES_MAX;
use handfast_protocol::{Address, PeerId, SignedAddressRecord, UnixMillis, codec};
use serde::{Deserialize, Serialize};

use crate::record::{FileKind, Record, RecordFault};
use crate::store::Store;
use crate::table::Urgency;
use crate::trust_record::{RECORD_BYTES_MAX, decode_peer, decode_versioned, encode_versioned};

/// Addresses that one dial attempt may use.
pub const DIAL_ADDRESSES_MAX: usize = 4;

/// Longest text that an operator may type for an address: a DNS name (RFC 1035, section 2.3.4), a colon, a port.
pub const TYPED_BYTES_MAX: usize = 255 + 1 + 5;

/// What is known of where a peer is.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct PeerRecord {
    /// What the operator typed, as typed: `HOST:PORT`. Resolved again at each dial.
    pub typed: Option<String>,
    /// Where the peer says that it can be reached, best first.
    pub signed: Vec<Address>,
    /// Number of the signed record; greater replaces.
    pub signed_epoch: u64,
    /// From where it last dialled us or where we last reached it.
    pub observed: Option<Address>,
    /// When it last authenticated.
    pub last_seen: Option<UnixMillis>,
    /// What the peer signed, whole: to be passed on to whoever may know.
    #[serde(skip)]
    pub evidence: Option<Box<SignedAddressRecord>>,
}

/// First byte of a record with evidence: a record of version 1 and the evidence follow.
const WITH_EVIDENCE_VERSION: u8 = 2;

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
        match &self.evidence {
            Some(evidence) => {
                out.push(WITH_EVIDENCE_VERSION);
                codec::encode_into(&(self, &**evidence), out);
            }
            None => encode_versioned(self, out),
        }
    }

    fn decode(peer: &PeerId, bytes: &[u8]) -> Result<PeerRecord, RecordFault> {
        let Some((&WITH_EVIDENCE_VERSION, body)) = bytes.split_first() else {
            return decode_versioned(bytes);
        };
        let (record, evidence): (PeerRecord, SignedAddressRecord) =
            codec::decode_stored(body, RECORD_BYTES_MAX).map_err(|_| RecordFault::BadValue)?;
        if evidence.record.peer != *peer {
            return Err(RecordFault::KeyMismatch);
        }
        Ok(PeerRecord { evidence: Some(Box::new(evidence)), ..record })
    }
}

impl PeerRecord {
    /// Takes the peer's own address record, if it is newer. `local_too`: loopback and link-local addresses count.
    pub fn take_signed(&mut self, signed: &SignedAddressRecord, local_too: bool) -> bool {
        if signed.record.epoch <= self.signed_epoch {
            return false;
        }
        self.signed_epoch = signed.record.epoch;
        self.evidence = Some(Box::new(signed.clone()));
        let usable = |address: &&Address| address.is_dialable() && (local_too || !address.is_local_only());
        self.signed = signed.record.addresses.iter().filter(usable).take(ADDRESSES_MAX).copied().collect();
        true
    }

    /// Addresses that nobody vouches for but the peer's own word.
    pub fn claims(&self) -> Vec<Address> {
        self.signed.iter().filter(|address| self.observed.as_ref() != Some(*address)).copied().collect()
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

/// Peers whose addresses are kept besides those that [`trim`] is told to keep: about 80 MB.
pub const PEERS_MAX: usize = 131_072;

/// Drops the addresses of those who were least recently useful, where there are more than `max`, and a sixteenth more so
/// that it is not asked all the time. Whoever `is_kept` names stays. Returns how many went.
pub fn trim(store: &Store<PeerRecord>, max: usize, is_kept: impl Fn(&PeerId) -> bool) -> usize {
    let count = store.read(|table| table.len());
    if count <= max {
        return 0;
    }
    let dropped = |(peer, record): (PeerId, Arc<PeerRecord>)| (!is_kept(&peer)).then_some((record.last_seen, peer));
    let mut list: Vec<_> = store.walk().flatten().filter_map(dropped).collect();
    list.sort_unstable();
    list.truncate(count - max + max / 16);
    let last = list.last().map(|(seen, _)| *seen);
    let dropped: Vec<PeerId> = list.into_iter().map(|(_, peer)| peer).collect();
    // Useful in the meantime: it stays.
    store.remove_all(&dropped, |record| Some(record.last_seen) <= last);
    dropped.len()
}

/// Whether the addresses of one more peer may be kept before [`trim`] is asked again.
pub fn has_room(store: &Store<PeerRecord>) -> bool {
    store.read(|table| table.len()) < PEERS_MAX + PEERS_MAX / 16
}

/// What of it others may be told: what the peer signed, while that has not ended.
pub fn to_relay(record: &PeerRecord, now: UnixMillis) -> Option<&SignedAddressRecord> {
    record.evidence.as_deref().filter(|signed| signed.record.expires_at > now)
}

/// Changes what is known of where `peer` is. Written within a second, whatever else happens. `change` is made again where
/// somebody else was faster, so that two changes at once are both kept. A typed text that is too long is not taken.
pub fn update(store: &Store<PeerRecord>, peer: PeerId, change: impl Fn(&mut PeerRecord)) {
    loop {
        let before = store.read(|table| table.get(&peer).cloned());
        let known = before.as_deref().cloned().unwrap_or_default();
        let mut record = known.clone();
        change(&mut record);
        if record.typed.as_ref().is_some_and(|typed| typed.len() > TYPED_BYTES_MAX) {
            record.typed.clone_from(&known.typed);
        }
        if record == known || store.replace(peer, before.as_ref(), Arc::new(record), Urgency::Lazy) {
            return;
        }
    }
}

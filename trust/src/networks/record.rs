//! What `invites.hf` holds: networks, their members and expulsions, invites, and who redeemed them.
//!
//! One record kind with a tag in its key, so that one file, one lock and one floor guard all of them: a redemption, the
//! use that it took and the membership that it made are one change. A record holds no signature that was not checked
//! before it was stored, and no secret.
//!
//! ```text
//! key      tag (1 network, 2 member, 3 notice, 4 invite, 5 redemption), 32 bytes, and for 2, 3 and 5 a peer's 32 bytes
//! record   version byte, canonical encoding; what the key says is not said again
//! ```
//!
//! Not here: what changes them (`Networks`), the view without a lock (`members`).

use std::sync::Arc;

use handfast_protocol::membership::MembershipRank;
use handfast_protocol::statement::Signature;
use handfast_protocol::{
    Address, Certificate, InviteId, Membership, NetworkId, NetworkName, Notice, NoticeKind, PeerId, Role,
    SignedCertificate, SignedNotice, UnixMillis, VerifiedMembership, VerifiedNotice,
};
use serde::{Deserialize, Serialize};

use super::members::Members;
use crate::record::{FileKind, Record, RecordFault};
use crate::trust_record::{decode_versioned, encode_versioned};

/// Most memberships that are kept of one member in one network: the best of each issuer.
pub const ISSUERS_MAX: usize = 4;

/// By what a record is found.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum NetKey {
    /// A network that we are in, or were.
    Network(NetworkId),
    /// A member of it.
    Member(NetworkId, PeerId),
    /// What the authority said last of a member.
    Notice(NetworkId, PeerId),
    /// An invite of ours.
    Invite(InviteId),
    /// A key that redeemed it.
    Redemption(InviteId, PeerId),
}

/// A record of `invites.hf`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NetRecord {
    /// A network.
    Network(NetworkRecord),
    /// A member.
    Member(MemberRecord),
    /// What the authority said last of a member.
    Notice(VerifiedNotice),
    /// An invite.
    Invite(InviteRecord),
    /// A redemption.
    Redemption(RedemptionRecord),
}

/// A network that this node is in, or was.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NetworkRecord {
    /// What it is called here. No other network here is called so.
    pub name: NetworkName,
    /// The key of its authority is, or was, here.
    pub authority: bool,
    /// We have left: no membership counts here.
    pub left: bool,
    /// Whether its rule grants.
    pub rule: bool,
    /// When we came in.
    pub joined_at: UnixMillis,
    /// A join that is not done: the roster has not been read to its end.
    pub joining: Option<Joining>,
}

/// From whom the rest of a join is to be had.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Joining {
    inviter: [u8; 32],
    /// Where the ticket said that the inviter is.
    pub addresses: Vec<Address>,
}

impl Joining {
    /// A join by this inviter.
    pub fn new(inviter: PeerId, addresses: Vec<Address>) -> Joining {
        Joining { inviter: *inviter.as_bytes(), addresses }
    }

    /// Who issued the certificate.
    pub fn inviter(&self) -> PeerId {
        PeerId::from_stored(self.inviter)
    }
}

/// One membership, and whether its end was observed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Kept {
    /// The chain.
    pub membership: VerifiedMembership,
    /// Its end was observed once: a clock that goes back does not revive it.
    pub expired: bool,
}

/// The memberships of one member in one network: of each issuer the greatest, so that one sponsor cannot displace what
/// another signed. At most [`ISSUERS_MAX`].
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct MemberRecord {
    /// In ascending order of their issuers, the authority first.
    pub kept: Vec<Kept>,
}

impl MemberRecord {
    /// Merges one in: a join for each issuer. `None`: it is no news. Where there are too many issuers, `worthless` ones
    /// go first, then the one that ends first.
    pub(super) fn with(
        &self,
        membership: &VerifiedMembership,
        now: UnixMillis,
        worthless: impl Fn(&Kept) -> bool,
    ) -> Option<MemberRecord> {
        let issuer = |kept: &Kept| kept.membership.membership().sponsor();
        let mut kept = self.kept.clone();
        let new = Kept { membership: membership.clone(), expired: membership.membership().ends_at() <= now };
        match kept.binary_search_by_key(&issuer(&new), issuer) {
            Ok(at) if kept[at].membership.rank() >= membership.rank() => return None,
            Ok(at) => kept[at] = new,
            Err(at) => kept.insert(at, new),
        }
        if kept.len() > ISSUERS_MAX {
            let worth = |kept: &Kept| (!worthless(kept), !kept.expired, kept.membership.membership().ends_at());
            let least = (0..kept.len()).min_by_key(|at| worth(&kept[*at]))?;
            kept.remove(least);
        }
        (kept != self.kept).then_some(MemberRecord { kept })
    }

    /// The greatest of one issuer.
    pub fn by(&self, sponsor: Option<PeerId>) -> Option<&Kept> {
        self.kept.iter().find(|kept| kept.membership.membership().sponsor() == sponsor)
    }

    /// The greatest epoch of one issuer.
    pub(super) fn epoch_by(&self, sponsor: Option<PeerId>) -> Option<u64> {
        self.by(sponsor).map(|kept| {
            let MembershipRank { epoch, .. } = kept.membership.rank();
            epoch
        })
    }
}

/// An invite of ours.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct InviteRecord {
    pub(super) network: [u8; 32],
    /// What the redeemers become.
    pub role: Role,
    /// How many keys may redeem it.
    pub uses: u32,
    /// How many did.
    pub used: u32,
    /// From when on.
    pub valid_from: UnixMillis,
    /// Until when.
    pub expires_at: UnixMillis,
    /// It was taken back.
    pub revoked: bool,
    /// When it was made.
    pub made_at: UnixMillis,
}

impl InviteRecord {
    /// The network.
    pub fn network(&self) -> NetworkId {
        NetworkId::from_stored(self.network)
    }
}

/// A key that redeemed an invite.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RedemptionRecord {
    /// When.
    pub at: UnixMillis,
    /// What it got.
    pub membership: VerifiedMembership,
}

/// A certificate without the two names.
#[derive(Serialize, Deserialize)]
struct StoredCertificate {
    epoch: u64,
    issued_at: UnixMillis,
    expires_at: UnixMillis,
    role: Role,
    signature: Signature,
}

/// A chain without network and member; a sponsor by its bytes, which the file's digests vouch for.
#[derive(Serialize, Deserialize)]
struct StoredMembership {
    certificate: StoredCertificate,
    sponsor: Option<([u8; 32], StoredCertificate)>,
    expired: bool,
}

#[derive(Serialize, Deserialize)]
struct StoredNotice {
    number: u64,
    kind: NoticeKind,
    issued_at: UnixMillis,
    signature: Signature,
}

#[derive(Serialize, Deserialize)]
struct StoredRedemption {
    network: [u8; 32],
    at: UnixMillis,
    membership: StoredMembership,
}

impl StoredCertificate {
    fn of(signed: &SignedCertificate) -> StoredCertificate {
        let Certificate { epoch, issued_at, expires_at, role, .. } = signed.certificate;
        StoredCertificate { epoch, issued_at, expires_at, role, signature: signed.signature }
    }

    fn signed(&self, network: NetworkId, member: PeerId) -> SignedCertificate {
        let StoredCertificate { epoch, issued_at, expires_at, role, signature } = *self;
        let certificate = Certificate { network, member, epoch, issued_at, expires_at, role };
        SignedCertificate { certificate, signature }
    }
}

impl StoredMembership {
    fn of(membership: &Membership, expired: bool) -> StoredMembership {
        let sponsor = membership.sponsor.as_ref();
        StoredMembership {
            certificate: StoredCertificate::of(&membership.certificate),
            sponsor: sponsor.map(|by| (*by.certificate.member.as_bytes(), StoredCertificate::of(by))),
            expired,
        }
    }

    fn kept(&self, network: NetworkId, member: PeerId) -> Kept {
        let by = self.sponsor.as_ref();
        let sponsor = by.map(|(sponsor, by)| by.signed(network, PeerId::from_stored(*sponsor)));
        let membership = Membership { certificate: self.certificate.signed(network, member), sponsor };
        Kept { membership: membership.from_stored(), expired: self.expired }
    }
}

impl Record for NetRecord {
    type Key = NetKey;
    type Index = Members;
    const KIND: FileKind = FileKind::Invites;

    fn encode_key(key: &NetKey, out: &mut Vec<u8>) {
        let (tag, first, second) = match key {
            NetKey::Network(network) => (1, network.as_bytes(), None),
            NetKey::Member(network, peer) => (2, network.as_bytes(), Some(peer)),
            NetKey::Notice(network, peer) => (3, network.as_bytes(), Some(peer)),
            NetKey::Invite(invite) => (4, &invite.0, None),
            NetKey::Redemption(invite, peer) => (5, &invite.0, Some(peer)),
        };
        out.push(tag);
        out.extend_from_slice(first);
        if let Some(peer) = second {
            out.extend_from_slice(peer.as_bytes());
        }
    }

    fn decode_key(bytes: &[u8]) -> Result<NetKey, RecordFault> {
        let (tag, rest) = bytes.split_first().ok_or(RecordFault::TooShort)?;
        let (first, second) = rest.split_first_chunk::<32>().ok_or(RecordFault::BadKey)?;
        let network = NetworkId::from_stored(*first);
        let peer = || second.try_into().map(PeerId::from_stored).map_err(|_| RecordFault::BadKey);
        let alone = |key| if second.is_empty() { Ok(key) } else { Err(RecordFault::BadKey) };
        match tag {
            1 => alone(NetKey::Network(network)),
            2 => Ok(NetKey::Member(network, peer()?)),
            3 => Ok(NetKey::Notice(network, peer()?)),
            4 => alone(NetKey::Invite(InviteId(*first))),
            5 => Ok(NetKey::Redemption(InviteId(*first), peer()?)),
            tag => Err(RecordFault::UnknownTag(u32::from(*tag))),
        }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            NetRecord::Network(record) => encode_versioned(record, out),
            NetRecord::Invite(record) => encode_versioned(record, out),
            NetRecord::Member(record) => {
                let stored = |kept: &Kept| StoredMembership::of(kept.membership.membership(), kept.expired);
                let kept: Vec<StoredMembership> = record.kept.iter().map(stored).collect();
                encode_versioned(&kept, out);
            }
            NetRecord::Notice(notice) => {
                let (SignedNotice { signature, .. }, said) = (*notice.signed(), notice.notice());
                let Notice { number, kind, issued_at, .. } = *said;
                encode_versioned(&StoredNotice { number, kind, issued_at, signature }, out);
            }
            NetRecord::Redemption(RedemptionRecord { at, membership }) => {
                let network = *membership.network().as_bytes();
                let membership = StoredMembership::of(membership.membership(), false);
                encode_versioned(&StoredRedemption { network, at: *at, membership }, out);
            }
        }
    }

    fn decode(key: &NetKey, bytes: &[u8]) -> Result<NetRecord, RecordFault> {
        Ok(match *key {
            NetKey::Network(_) => NetRecord::Network(decode_versioned(bytes)?),
            NetKey::Invite(_) => NetRecord::Invite(decode_versioned(bytes)?),
            NetKey::Member(network, member) => {
                let stored: Vec<StoredMembership> = decode_versioned(bytes)?;
                if stored.len() > ISSUERS_MAX {
                    return Err(RecordFault::BadValue);
                }
                let kept = stored.iter().map(|stored| stored.kept(network, member)).collect();
                NetRecord::Member(MemberRecord { kept })
            }
            NetKey::Notice(network, member) => {
                let StoredNotice { number, kind, issued_at, signature } = decode_versioned(bytes)?;
                let notice = Notice { network, member, number, kind, issued_at };
                NetRecord::Notice(SignedNotice { notice, signature }.from_stored())
            }
            NetKey::Redemption(_, member) => {
                let StoredRedemption { network, at, membership } = decode_versioned(bytes)?;
                let Kept { membership, .. } = membership.kept(NetworkId::from_stored(network), member);
                NetRecord::Redemption(RedemptionRecord { at, membership })
            }
        })
    }
}

/// The record under a key, as what that key's kind is.
macro_rules! as_kind {
    ($($name:ident: $variant:ident -> $kind:ty;)*) => {
        impl NetRecord {
            $(
                /// This record, where it is of this kind.
                pub fn $name(&self) -> Option<&$kind> {
                    match self {
                        NetRecord::$variant(record) => Some(record),
                        _ => None,
                    }
                }
            )*
        }
    };
}

as_kind! {
    network: Network -> NetworkRecord;
    member: Member -> MemberRecord;
    notice: Notice -> VerifiedNotice;
    invite: Invite -> InviteRecord;
    redemption: Redemption -> RedemptionRecord;
}

/// A record as it is in the table: what a change was prepared from.
pub(super) type Found = Option<Arc<NetRecord>>;

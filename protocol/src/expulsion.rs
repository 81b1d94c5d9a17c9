//! Who was expelled from a network: notices of its authority, signed and numbered.
//!
//! Invariants: of the notices about one member the greatest by number counts, an expulsion over a readmission of the
//! same number: merging is a join, so that order and repetition do not matter. Only the authority's key makes one. What
//! is held of a whole list is told in 36 bytes ([`ExpulsionsHeld`]): equal lists give equal bytes, in whatever order
//! they were learnt.
//!
//! Not here: what an expulsion ends (crate `handfast-trust`).

use serde::{Deserialize, Serialize};

use crate::codec;
use crate::identity::{NetworkId, PeerId, SecretKey};
use crate::membership::MembershipFault;
use crate::statement::{Digest, Signature, UnixMillis};

/// What precedes the encoding of a notice under its signature.
const EXPULSION_DOMAIN: &[u8] = b"handfast/1/expulsion";

/// The two kinds. An expulsion outranks a readmission of the same number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum NoticeKind {
    /// Certificates of the member count again, and those that it signed.
    Readmit,
    /// No certificate of the member counts, whatever its epoch, and none that it signed.
    Expel,
}

/// "`member` is expelled from `network`", or readmitted.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Notice {
    /// The network.
    pub network: NetworkId,
    /// Whom it is about.
    pub member: PeerId,
    /// Number of the notice in its network; greater wins.
    pub number: u64,
    /// Which of the two.
    pub kind: NoticeKind,
    /// When it was signed, by the authority's clock.
    pub issued_at: UnixMillis,
}

impl Notice {
    fn message(&self) -> Vec<u8> {
        let mut message = EXPULSION_DOMAIN.to_vec();
        codec::encode_into(self, &mut message);
        message
    }

    /// Signs the notice with the key of the network's authority.
    ///
    /// # Errors
    /// [`MembershipFault::WrongKey`].
    pub fn sign(self, authority: &SecretKey) -> Result<VerifiedNotice, MembershipFault> {
        if authority.network_id() != self.network {
            return Err(MembershipFault::WrongKey);
        }
        let signature = Signature(authority.sign(&self.message()));
        Ok(VerifiedNotice::new(SignedNotice { notice: self, signature }))
    }
}

/// A notice with its signature, unchecked until [`SignedNotice::verify`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SignedNotice {
    /// The sentence.
    pub notice: Notice,
    /// The authority's signature over the domain and the canonical encoding of the sentence.
    pub signature: Signature,
}

impl SignedNotice {
    /// Believes the notice if the authority of its network signed it.
    ///
    /// # Errors
    /// [`MembershipFault::BadSignature`].
    pub fn verify(self) -> Result<VerifiedNotice, MembershipFault> {
        if self.notice.network.verify(&self.notice.message(), &self.signature.0) {
            Ok(VerifiedNotice::new(self))
        } else {
            Err(MembershipFault::BadSignature)
        }
    }

    /// Takes a notice that was checked before it was stored, from bytes that a record file's digests vouch for. A wrong
    /// yes here would be believed: nothing but a record file may call it.
    pub fn from_stored(self) -> VerifiedNotice {
        VerifiedNotice::new(self)
    }
}

/// A notice whose signature holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VerifiedNotice {
    notice: SignedNotice,
    digest: Digest,
}

/// The order in which notices about one member replace each other: the greatest wins.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct NoticeRank {
    /// First the number,
    pub number: u64,
    /// then expulsion over readmission,
    pub kind: NoticeKind,
    /// then the digest, which decides nothing but that all decide alike.
    pub digest: Digest,
}

impl VerifiedNotice {
    fn new(notice: SignedNotice) -> VerifiedNotice {
        VerifiedNotice { notice, digest: Digest(blake3::hash(&notice.notice.message()).into()) }
    }

    /// The notice with its signature: evidence, to pass on or to store.
    pub fn signed(&self) -> &SignedNotice {
        &self.notice
    }

    /// What it says.
    pub fn notice(&self) -> &Notice {
        &self.notice.notice
    }

    /// True when its member is expelled.
    pub fn expels(&self) -> bool {
        self.notice().kind == NoticeKind::Expel
    }

    /// Its place in the order of merging.
    pub fn rank(&self) -> NoticeRank {
        NoticeRank { number: self.notice().number, kind: self.notice().kind, digest: self.digest }
    }

    /// BLAKE3 of the bytes that the signature covers.
    pub fn digest(&self) -> Digest {
        self.digest
    }
}

/// What somebody holds of a network's notices: how many members they are about, and the sum (exclusive or) of the
/// digests of those that count. Only the authority can add to it, so nobody else can look for two lists with one sum.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct ExpulsionsHeld {
    /// Members that there is a notice about.
    pub count: u32,
    /// Sum of the digests.
    pub digest: Digest,
}

impl Default for ExpulsionsHeld {
    fn default() -> ExpulsionsHeld {
        ExpulsionsHeld { count: 0, digest: Digest([0; 32]) }
    }
}

impl ExpulsionsHeld {
    /// The same list with `new` where there was `old`.
    #[must_use]
    pub fn replacing(mut self, old: Option<Digest>, new: Option<Digest>) -> ExpulsionsHeld {
        for digest in [old, new].into_iter().flatten() {
            self.digest.0.iter_mut().zip(digest.0).for_each(|(sum, byte)| *sum ^= byte);
        }
        let count = self.count.saturating_sub(u32::from(old.is_some())).saturating_add(u32::from(new.is_some()));
        ExpulsionsHeld { count, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::NOTICE_BYTES;

    fn key(seed: u8) -> SecretKey {
        SecretKey::from_seed(&[seed; 32])
    }

    fn notice(member: u8, number: u64, kind: NoticeKind) -> VerifiedNotice {
        let (network, member) = (key(9).network_id(), key(member).peer_id());
        Notice { network, member, number, kind, issued_at: UnixMillis(7) }.sign(&key(9)).unwrap()
    }

    #[test]
    fn every_changed_bit_is_refused() {
        let bytes = codec::encode(notice(1, 5, NoticeKind::Expel).signed());
        assert_eq!(bytes.len(), NOTICE_BYTES);
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            let believed =
                codec::decode::<SignedNotice>(&changed, NOTICE_BYTES).is_ok_and(|claim| claim.verify().is_ok());
            assert!(!believed, "bit {bit}");
        }
    }

    #[test]
    fn only_the_authority_expels() {
        let said = *notice(1, 5, NoticeKind::Expel).notice();
        assert_eq!(said.sign(&key(1)), Err(MembershipFault::WrongKey));
    }

    #[test]
    fn an_expulsion_wins_under_one_number_and_loses_to_a_later_readmission() {
        let expelled = notice(1, 5, NoticeKind::Expel);
        assert!(expelled.rank() > notice(1, 5, NoticeKind::Readmit).rank());
        assert!(expelled.rank() < notice(1, 6, NoticeKind::Readmit).rank());
    }

    #[test]
    fn equal_lists_have_equal_sums_whatever_the_order() {
        let (a, b) = (notice(1, 5, NoticeKind::Expel).digest(), notice(2, 6, NoticeKind::Expel).digest());
        let newer = notice(1, 7, NoticeKind::Readmit).digest();
        let empty = ExpulsionsHeld::default();
        let one = empty.replacing(None, Some(a)).replacing(None, Some(b)).replacing(Some(a), Some(newer));
        let other = empty.replacing(None, Some(b)).replacing(None, Some(newer));
        assert_eq!((one, one.count), (other, 2));
        assert_ne!(one, empty.replacing(None, Some(a)).replacing(None, Some(b)));
        assert_eq!(one.replacing(Some(newer), None).replacing(Some(b), None), empty);
    }
}

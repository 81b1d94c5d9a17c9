//! Who belongs to a network: certificates signed by its authority, or by a sponsor whom the authority certified.
//!
//! Invariants: a chain has one link or two (depth one): a sponsor certifies members, never sponsors, and never itself.
//! A [`VerifiedMembership`] exists only for a chain whose every signature `verify_strict` accepted, or that was accepted
//! before and whose bytes a record file vouches for. Checking needs no clock and no network: who uses a membership
//! compares [`Membership::ends_at`] with its own clock, and asks the expulsions.
//!
//! A certificate does not name its issuer: that is the sponsor whose certificate comes along, or else the authority. So
//! the two cannot disagree.
//!
//! Not here: expulsions (`expulsion`), what a membership is good for (crate `handfast-trust`).

use serde::{Deserialize, Serialize};

use crate::codec;
use crate::identity::{NetworkId, PeerId, SecretKey};
use crate::statement::{Digest, Signature, UnixMillis};

/// What precedes the encoding of a certificate under its signature.
const MEMBERSHIP_DOMAIN: &[u8] = b"handfast/1/membership";

/// What a member may do in its network.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Role {
    /// Belong to it.
    Member,
    /// Certify members, too. Only the authority makes sponsors.
    Sponsor,
}

impl Role {
    /// Its name in tables and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Member => "member",
            Role::Sponsor => "sponsor",
        }
    }
}

/// "`member` belongs to `network`", until `expires_at`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Certificate {
    /// The network.
    pub network: NetworkId,
    /// Whom it is about.
    pub member: PeerId,
    /// Number of the certificate among those of its issuer for this member; greater replaces.
    pub epoch: u64,
    /// When it was issued, by the issuer's clock.
    pub issued_at: UnixMillis,
    /// From when on it is worth nothing.
    pub expires_at: UnixMillis,
    /// What the member may do.
    pub role: Role,
}

/// Why a chain of certificates is not believed, or cannot be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MembershipFault {
    /// The two certificates are for different networks.
    #[error("the certificates of the chain are for different networks")]
    WrongNetwork,
    /// Whose certificate comes along is no sponsor.
    #[error("the issuer of the certificate is not a sponsor")]
    NotASponsor,
    /// A sponsor certified a sponsor.
    #[error("only the authority makes sponsors")]
    TooDeep,
    /// A sponsor certified itself.
    #[error("a sponsor cannot certify itself")]
    SelfIssued,
    /// The key is not the issuer's.
    #[error("the key is not the issuer's")]
    WrongKey,
    /// A signature does not match.
    #[error("a signature of the chain does not match")]
    BadSignature,
}

/// A certificate with its issuer's signature, unchecked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SignedCertificate {
    /// The sentence.
    pub certificate: Certificate,
    /// The issuer's signature over the domain and the canonical encoding of the sentence.
    pub signature: Signature,
}

impl Certificate {
    fn message(&self) -> Vec<u8> {
        let mut message = MEMBERSHIP_DOMAIN.to_vec();
        codec::encode_into(self, &mut message);
        message
    }

    fn sign(self, key: &SecretKey) -> SignedCertificate {
        SignedCertificate { certificate: self, signature: Signature(key.sign(&self.message())) }
    }

    /// Signs the certificate with the key of the network's authority.
    ///
    /// # Errors
    /// [`MembershipFault::WrongKey`].
    pub fn by_authority(self, authority: &SecretKey) -> Result<VerifiedMembership, MembershipFault> {
        if authority.network_id() != self.network {
            return Err(MembershipFault::WrongKey);
        }
        Ok(VerifiedMembership::new(Membership { certificate: self.sign(authority), sponsor: None }))
    }

    /// Signs the certificate with the key of a sponsor, whose own membership comes along.
    ///
    /// # Errors
    /// Every [`MembershipFault`] except `BadSignature`.
    pub fn by_sponsor(
        self,
        key: &SecretKey,
        sponsor: &VerifiedMembership,
    ) -> Result<VerifiedMembership, MembershipFault> {
        if key.peer_id() != sponsor.member() {
            return Err(MembershipFault::WrongKey);
        }
        let sponsor = sponsor.membership.by_authority_alone().ok_or(MembershipFault::NotASponsor)?;
        let membership = Membership { certificate: self.sign(key), sponsor: Some(*sponsor) };
        membership.check_chain()?;
        Ok(VerifiedMembership::new(membership))
    }
}

/// A chain that proves a membership, unchecked until [`Membership::verify`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Membership {
    /// The member's certificate.
    pub certificate: SignedCertificate,
    /// That of the sponsor who signed it; absent: the authority did.
    pub sponsor: Option<SignedCertificate>,
}

impl Membership {
    /// The network.
    pub fn network(&self) -> NetworkId {
        self.certificate.certificate.network
    }

    /// Whose membership it is.
    pub fn member(&self) -> PeerId {
        self.certificate.certificate.member
    }

    /// The sponsor who signed it; `None`: the authority.
    pub fn sponsor(&self) -> Option<PeerId> {
        self.sponsor.map(|sponsor| sponsor.certificate.member)
    }

    /// When the first certificate of the chain ends.
    pub fn ends_at(&self) -> UnixMillis {
        let end = self.certificate.certificate.expires_at;
        self.sponsor.map_or(end, |sponsor| end.min(sponsor.certificate.expires_at))
    }

    fn by_authority_alone(&self) -> Option<&SignedCertificate> {
        Some(&self.certificate).filter(|_| self.sponsor.is_none())
    }

    /// All of the chain that needs no signature.
    fn check_chain(&self) -> Result<(), MembershipFault> {
        let Some(sponsor) = &self.sponsor else {
            return Ok(());
        };
        let (said, by) = (&self.certificate.certificate, &sponsor.certificate);
        match () {
            () if said.network != by.network => Err(MembershipFault::WrongNetwork),
            () if by.role != Role::Sponsor => Err(MembershipFault::NotASponsor),
            () if said.role != Role::Member => Err(MembershipFault::TooDeep),
            () if said.member == by.member => Err(MembershipFault::SelfIssued),
            () => Ok(()),
        }
    }

    /// Believes the chain if it holds: at most two signatures, about 40 us each.
    ///
    /// # Errors
    /// Every [`MembershipFault`] except `WrongKey`.
    pub fn verify(self) -> Result<VerifiedMembership, MembershipFault> {
        self.verify_among(&mut Vec::new())
    }

    /// As [`Membership::verify`], for many chains of few sponsors: what was checked before, in `sponsors`, is not
    /// checked again, and what is checked now is added.
    ///
    /// # Errors
    /// As [`Membership::verify`].
    pub fn verify_among(self, sponsors: &mut Vec<SignedCertificate>) -> Result<VerifiedMembership, MembershipFault> {
        self.check_chain()?;
        let by_authority = |signed: &SignedCertificate| {
            signed.certificate.network.verify(&signed.certificate.message(), &signed.signature.0)
        };
        let holds = match &self.sponsor {
            None => by_authority(&self.certificate),
            Some(sponsor) => {
                let known = sponsors.contains(sponsor);
                let holds = known || by_authority(sponsor);
                if holds && !known {
                    sponsors.push(*sponsor);
                }
                let SignedCertificate { certificate, signature } = &self.certificate;
                holds && sponsor.certificate.member.verify(&certificate.message(), &signature.0)
            }
        };
        if holds { Ok(VerifiedMembership::new(self)) } else { Err(MembershipFault::BadSignature) }
    }

    /// Takes a chain that was checked before it was stored, from bytes that a record file's digests vouch for. A wrong
    /// yes here would be believed: nothing but a record file may call it.
    pub fn from_stored(self) -> VerifiedMembership {
        VerifiedMembership::new(self)
    }
}

/// A chain whose signatures hold.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VerifiedMembership {
    membership: Membership,
    digest: Digest,
}

/// The order in which memberships of one member by one issuer replace each other: the greatest wins.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct MembershipRank {
    /// First the epoch,
    pub epoch: u64,
    /// then the later end,
    pub ends_at: UnixMillis,
    /// then the digest of the chain, which decides nothing but that all decide alike.
    pub digest: Digest,
}

impl VerifiedMembership {
    fn new(membership: Membership) -> VerifiedMembership {
        let digest = Digest(blake3::hash(&codec::encode(&membership)).into());
        VerifiedMembership { membership, digest }
    }

    /// The chain: evidence, to show or to store.
    pub fn membership(&self) -> &Membership {
        &self.membership
    }

    /// The network.
    pub fn network(&self) -> NetworkId {
        self.membership.network()
    }

    /// Whose membership it is.
    pub fn member(&self) -> PeerId {
        self.membership.member()
    }

    /// What the member may do.
    pub fn role(&self) -> Role {
        self.membership.certificate.certificate.role
    }

    /// Its place among those of the same member by the same issuer.
    pub fn rank(&self) -> MembershipRank {
        let epoch = self.membership.certificate.certificate.epoch;
        MembershipRank { epoch, ends_at: self.membership.ends_at(), digest: self.digest }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::MEMBERSHIP_BYTES_MAX;

    fn key(seed: u8) -> SecretKey {
        SecretKey::from_seed(&[seed; 32])
    }

    fn certificate(member: u8, role: Role) -> Certificate {
        Certificate {
            network: key(9).network_id(),
            member: key(member).peer_id(),
            epoch: 3,
            issued_at: UnixMillis(10),
            expires_at: UnixMillis(100),
            role,
        }
    }

    fn sponsor() -> VerifiedMembership {
        certificate(2, Role::Sponsor).by_authority(&key(9)).unwrap()
    }

    fn sponsored() -> VerifiedMembership {
        certificate(1, Role::Member).by_sponsor(&key(2), &sponsor()).unwrap()
    }

    #[test]
    fn chains_of_one_and_of_two_hold() {
        for made in [sponsor(), sponsored()] {
            let bytes = codec::encode(made.membership());
            assert!(bytes.len() <= MEMBERSHIP_BYTES_MAX);
            let read: Membership = codec::decode(&bytes, MEMBERSHIP_BYTES_MAX).unwrap();
            assert_eq!(read.verify(), Ok(made));
        }
        assert_eq!(codec::encode(sponsored().membership()).len(), MEMBERSHIP_BYTES_MAX);
        assert_eq!(sponsored().membership().sponsor(), Some(key(2).peer_id()));
    }

    #[test]
    fn every_changed_bit_is_refused() {
        let bytes = codec::encode(sponsored().membership());
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            let believed =
                codec::decode::<Membership>(&changed, MEMBERSHIP_BYTES_MAX).is_ok_and(|chain| chain.verify().is_ok());
            assert!(!believed, "bit {bit}");
        }
    }

    /// Signed with the right keys, and yet no chain.
    #[test]
    fn chains_that_lead_nowhere_are_refused() {
        let signed = |certificate: Certificate, by: u8| certificate.sign(&key(by));
        let check = |certificate: SignedCertificate, sponsor: SignedCertificate, fault| {
            assert_eq!(Membership { certificate, sponsor: Some(sponsor) }.verify(), Err(fault));
        };
        let by_authority = |role| signed(certificate(2, role), 9);
        let member = signed(certificate(1, Role::Member), 2);
        check(member, by_authority(Role::Member), MembershipFault::NotASponsor);
        check(signed(certificate(1, Role::Sponsor), 2), by_authority(Role::Sponsor), MembershipFault::TooDeep);
        check(signed(certificate(2, Role::Member), 2), by_authority(Role::Sponsor), MembershipFault::SelfIssued);
        let elsewhere = Certificate { network: key(8).network_id(), ..certificate(2, Role::Sponsor) };
        check(member, signed(elsewhere, 8), MembershipFault::WrongNetwork);
        check(member, signed(certificate(2, Role::Sponsor), 8), MembershipFault::BadSignature);
        check(signed(certificate(1, Role::Member), 3), by_authority(Role::Sponsor), MembershipFault::BadSignature);
        let alone = Membership { certificate: member, sponsor: None };
        assert_eq!(alone.verify(), Err(MembershipFault::BadSignature));
    }

    #[test]
    fn nobody_signs_with_another_key() {
        assert_eq!(certificate(1, Role::Member).by_authority(&key(8)), Err(MembershipFault::WrongKey));
        assert_eq!(certificate(1, Role::Member).by_sponsor(&key(3), &sponsor()), Err(MembershipFault::WrongKey));
        // A member by a sponsor is no sponsor, whoever has the key.
        let made = certificate(3, Role::Member).by_sponsor(&key(1), &sponsored());
        assert_eq!(made, Err(MembershipFault::NotASponsor));
    }

    #[test]
    fn a_chain_ends_with_its_first_certificate() {
        let late = Certificate { expires_at: UnixMillis(1_000), ..certificate(1, Role::Member) };
        assert_eq!(late.by_sponsor(&key(2), &sponsor()).unwrap().membership().ends_at(), UnixMillis(100));
        assert_eq!(late.by_authority(&key(9)).unwrap().membership().ends_at(), UnixMillis(1_000));
    }

    #[test]
    fn many_chains_of_one_sponsor_are_checked_together() {
        let mut sponsors = Vec::new();
        for member in 10..14 {
            let made = certificate(member, Role::Member).by_sponsor(&key(2), &sponsor()).unwrap();
            assert_eq!(made.membership().clone().verify_among(&mut sponsors), Ok(made));
        }
        assert_eq!(sponsors.len(), 1);
        let mut forged = sponsored().membership().clone();
        forged.sponsor.as_mut().unwrap().certificate.expires_at = UnixMillis(u64::MAX);
        assert_eq!(forged.verify_among(&mut sponsors), Err(MembershipFault::BadSignature));
        assert_eq!(sponsors.len(), 1);
    }
}

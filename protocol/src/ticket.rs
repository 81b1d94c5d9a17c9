//! The invite as a text: `hfinv1...`, bech32m over the canonical encoding, at most 600 bytes of it.
//!
//! Invariants: a changed character is refused (the code of bech32m finds up to three in a text of this length), and a
//! ticket has one text. The secret shows in no `Debug` and is zeroed when it is dropped; so is every buffer here that
//! held it. What an inviter stores of it is its [`InviteId`], from which nobody finds the secret.
//!
//! Not here: uses and redemption (crate `handfast-trust`), the QR code (crate `handfast`).

use std::fmt;
use std::str::FromStr;

use bech32::primitives::decode::CheckedHrpstring;
use bech32::{Bech32m, Hrp};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

use crate::address::Address;
use crate::codec;
use crate::identity::{NetworkId, PeerId};
use crate::limits::{ADDRESSES_MAX, TICKET_BYTES_MAX};
use crate::statement::UnixMillis;
use crate::text::NetworkName;

const TICKET_HRP: Hrp = Hrp::parse_unchecked("hfinv");
/// First byte of the payload.
const TICKET_VERSION: u8 = 1;
/// Context of the key derivation (BLAKE3, section 2.3) that makes an [`InviteId`] of a secret.
const INVITE_CONTEXT: &str = "handfast/1/invite";

/// Why a text is not a ticket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TicketFault {
    /// The checksum does not match, or a character is none of a ticket's.
    #[error("the checksum of this ticket does not match: a character is mistyped or missing")]
    Checksum,
    /// A text of another kind.
    #[error("this is not a ticket; expected hfinv1...")]
    NotATicket,
    /// Made by a later version.
    #[error("this ticket is of version {0}, which this program does not know")]
    NewerVersion(u8),
}

/// 128 random bits that let a key into a network. Zeroed when dropped; shown only as part of a ticket's text.
#[derive(Clone, PartialEq, Eq)]
pub struct InviteSecret(Zeroizing<[u8; 16]>);

impl InviteSecret {
    /// The secret of these bits, which the caller drew.
    pub fn new(bits: [u8; 16]) -> InviteSecret {
        InviteSecret(Zeroizing::new(bits))
    }

    /// What an inviter stores of it.
    pub fn id(&self) -> InviteId {
        InviteId(blake3::derive_key(INVITE_CONTEXT, &*self.0))
    }
}

impl Serialize for InviteSecret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for InviteSecret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<InviteSecret, D::Error> {
        <[u8; 16]>::deserialize(deserializer).map(InviteSecret::new)
    }
}

impl fmt::Debug for InviteSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("InviteSecret(..)")
    }
}

/// Names an invite: a one-way function of its secret.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct InviteId(#[serde(with = "codec::words")] pub [u8; 32]);

impl fmt::Display for InviteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for InviteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0[..4]))
    }
}

/// Bytes that may hold a secret: a frame of a join. Zeroed when dropped, and not shown.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretBytes(Zeroizing<Vec<u8>>);

impl SecretBytes {
    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        &self.0
    }
}

impl From<Vec<u8>> for SecretBytes {
    fn from(bytes: Vec<u8>) -> SecretBytes {
        SecretBytes(Zeroizing::new(bytes))
    }
}

impl fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretBytes({} bytes)", self.0.len())
    }
}

/// What whoever is invited is given.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Ticket {
    /// The network.
    pub network: NetworkId,
    /// What the inviter calls it: a proposal for a local name, nothing else.
    pub name: NetworkName,
    /// Who made the invite; the dial is pinned to this key.
    pub inviter: PeerId,
    /// Where the inviter is, best first.
    #[serde(deserialize_with = "codec::bounded_list::<_, _, ADDRESSES_MAX>")]
    pub addresses: Vec<Address>,
    /// What lets a key in.
    pub secret: InviteSecret,
    /// How many keys it lets in. For people: the inviter counts.
    pub uses: u32,
    /// From when on. For people: the inviter's clock decides.
    pub valid_from: UnixMillis,
    /// Until when. For people: the inviter's clock decides.
    pub expires_at: UnixMillis,
}

impl Ticket {
    /// The text, with the secret in it: for standard output or a file, never for a log.
    pub fn to_text(&self) -> Zeroizing<String> {
        // Room for all, so that no copy is left behind by growing.
        let mut payload = Zeroizing::new(Vec::with_capacity(TICKET_BYTES_MAX));
        payload.push(TICKET_VERSION);
        codec::encode_into(self, &mut payload);
        let mut text = Zeroizing::new(String::with_capacity(2 * TICKET_BYTES_MAX));
        let written = bech32::encode_lower_to_fmt::<Bech32m, _>(&mut *text, TICKET_HRP, &payload);
        debug_assert!(written.is_ok(), "a ticket of ours outgrew its limit");
        text
    }
}

impl FromStr for Ticket {
    type Err = TicketFault;

    fn from_str(text: &str) -> Result<Ticket, TicketFault> {
        if !text.get(..6).is_some_and(|head| head.eq_ignore_ascii_case("hfinv1")) {
            return Err(TicketFault::NotATicket);
        }
        let parsed = CheckedHrpstring::new::<Bech32m>(text).map_err(|_| TicketFault::Checksum)?;
        if parsed.hrp() != TICKET_HRP {
            return Err(TicketFault::NotATicket);
        }
        // The last character may have bits to spare; only zeros there, so that a ticket has one text.
        parsed.validate_segwit_padding().map_err(|_| TicketFault::Checksum)?;
        let mut payload = Zeroizing::new(Vec::with_capacity(TICKET_BYTES_MAX));
        payload.extend(parsed.byte_iter().take(TICKET_BYTES_MAX + 1));
        match payload.split_first() {
            Some((&TICKET_VERSION, body)) => {
                codec::decode(body, TICKET_BYTES_MAX - 1).map_err(|_| TicketFault::NotATicket)
            }
            Some((&version, _)) if version > TICKET_VERSION => Err(TicketFault::NewerVersion(version)),
            _ => Err(TicketFault::NotATicket),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::SecretKey;
    use std::net::SocketAddr;

    fn ticket(addresses: usize) -> Ticket {
        let at = |i: usize| Address::from(SocketAddr::from(([192, 0, 2, 1], 1_000 + i as u16)));
        Ticket {
            network: SecretKey::from_seed(&[9; 32]).network_id(),
            name: NetworkName::new("lab").unwrap(),
            inviter: SecretKey::from_seed(&[1; 32]).peer_id(),
            addresses: (0..addresses).map(at).collect(),
            secret: InviteSecret::new([7; 16]),
            uses: 10,
            valid_from: UnixMillis(5),
            expires_at: UnixMillis(6),
        }
    }

    #[test]
    fn a_ticket_reads_back_in_either_case() {
        let longest = Ticket { name: NetworkName::new(&"n".repeat(32)).unwrap(), ..ticket(ADDRESSES_MAX) };
        for made in [ticket(0), ticket(1), longest] {
            let text = made.to_text();
            assert!(text.starts_with("hfinv1") && codec::encode(&made).len() < TICKET_BYTES_MAX, "{}", text.len());
            assert_eq!(text.parse(), Ok(made.clone()));
            assert_eq!(text.to_ascii_uppercase().parse(), Ok(made));
        }
    }

    #[test]
    fn every_changed_bit_is_refused() {
        let text = ticket(2).to_text().as_bytes().to_vec();
        for bit in 0..text.len() * 8 {
            let mut changed = text.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            let refused = String::from_utf8(changed).map_or(true, |text| text.parse::<Ticket>().is_err());
            assert!(refused, "bit {bit}");
        }
    }

    #[test]
    fn what_is_no_ticket_says_so() {
        let check = |text: &str, fault| assert_eq!(text.parse::<Ticket>(), Err(fault), "{text}");
        check("", TicketFault::NotATicket);
        check(&SecretKey::from_seed(&[1; 32]).peer_id().to_string(), TicketFault::NotATicket);
        check("hfinv1", TicketFault::Checksum);
        let encoded = |payload: &[u8]| bech32::encode::<Bech32m>(TICKET_HRP, payload).unwrap();
        check(&encoded(&[]), TicketFault::NotATicket);
        check(&encoded(&[2, 1, 2, 3]), TicketFault::NewerVersion(2));
        check(&encoded(&[1, 1, 2, 3]), TicketFault::NotATicket);
        check(&encoded(&[1; 610]), TicketFault::NotATicket);
        let longer = [&[TICKET_VERSION], &*codec::encode(&ticket(0)), &[0]].concat();
        check(&encoded(&longer), TicketFault::NotATicket);
        check("hfinv1é", TicketFault::Checksum);
    }

    #[test]
    fn a_secret_does_not_show_and_its_name_does_not_tell_it() {
        let made = ticket(0);
        let shown = format!("{made:?} {:?}", SecretBytes::from(vec![7; 16]));
        assert!(!shown.contains("7, 7") && !shown.contains("0707"), "{shown}");
        assert_ne!(made.secret.id().0[..16], [7; 16]);
        assert_ne!(made.secret.id(), InviteSecret::new([8; 16]).id());
    }
}

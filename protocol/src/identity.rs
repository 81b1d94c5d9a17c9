//! Who a node is: an Ed25519 public key (RFC 8032), and nothing beside it.
//!
//! Invariant: a [`PeerId`] or [`NetworkId`] that came from the wire or from an operator is a canonical encoding of a
//! point that is not of small order. Record files are the one exception: their digest chain already vouches for the
//! bytes, and a million decompressions would cost seconds ([`PeerId::from_stored`]).

use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use bech32::primitives::decode::CheckedHrpstring;
use bech32::{Bech32m, Hrp};
use data_encoding::HEXLOWER_PERMISSIVE;
use ed25519_dalek::{Signature, Signer, SigningKey, Verifier, VerifyingKey};
use serde::{Deserialize, Deserializer, Serialize};
use zeroize::Zeroizing;

use crate::codec;

/// Characters of the short form after `hf1`, for people to look at; never enough to change something with.
const SHORT_CHARACTERS: usize = 8;
/// Multicodec prefix of an Ed25519 public key (`did:key` method, W3C CCG).
const DID_KEY_ED25519: [u8; 2] = [0xed, 0x01];
/// More base58 characters than 34 bytes can take (47): decoding costs the square of the length.
const DID_CHARACTERS_MAX: usize = 48;
const DID_PREFIX: &str = "did:key:z";
const PEER_HRP: Hrp = Hrp::parse_unchecked("hf");
const NETWORK_HRP: Hrp = Hrp::parse_unchecked("hfnet");

/// Why a text or some bytes are not an identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IdentityFault {
    /// Not a canonical point on the curve.
    #[error("these 32 bytes are not an Ed25519 public key")]
    NotAKey,
    /// A point of small order: anybody could sign for it.
    #[error("this key is of small order and names nobody")]
    SmallOrder,
    /// The bech32m checksum does not match: a character is mistyped or missing.
    #[error("the checksum of this id does not match: a character is mistyped or missing")]
    Checksum,
    /// An id of another kind, e.g. a network where a peer is expected.
    #[error("this is an id of another kind")]
    WrongPrefix,
    /// None of the forms of an id.
    #[error("this is not an id; expected hf1..., 64 hex digits or did:key:z...")]
    NotAnId,
}

/// Keys that the process remembers having checked: a handshake asks for the same two about eight times, on several threads.
/// 0.9 MB, of which a page is taken when it is first used.
const REMEMBERED: usize = 4_096;

/// The lock is held for a copy of 192 bytes, and nobody waits for it.
static CHECKED: [Mutex<Option<VerifyingKey>>; REMEMBERED] = [const { Mutex::new(None) }; REMEMBERED];

/// The key with these bytes, decompressed; that is an exponentiation, 4 us, where it is not remembered. Many keys of one
/// place push each other out, which costs only that.
fn checked(bytes: [u8; 32]) -> Result<VerifyingKey, IdentityFault> {
    let place = &CHECKED[usize::from(u16::from_le_bytes([bytes[0], bytes[1]])) % REMEMBERED];
    let known = place.try_lock().ok().and_then(|key| *key);
    if let Some(known) = known.filter(|known| *known.as_bytes() == bytes) {
        return Ok(known);
    }
    let key = decompressed(&bytes)?;
    // Who finds the place taken goes on without.
    if let Ok(mut known) = place.try_lock() {
        *known = Some(key);
    }
    Ok(key)
}

/// As [`checked`], from the bytes alone.
fn decompressed(bytes: &[u8; 32]) -> Result<VerifyingKey, IdentityFault> {
    if is_small_order(bytes) {
        return Err(IdentityFault::SmallOrder);
    }
    if !is_reduced(bytes) {
        return Err(IdentityFault::NotAKey);
    }
    VerifyingKey::from_bytes(bytes).map_err(|_| IdentityFault::NotAKey)
}

/// True where y is below p = 2^255 - 19. The other encoding that is not canonical, x = 0 with a sign, is of small order.
fn is_reduced(bytes: &[u8; 32]) -> bool {
    bytes[31] & 0x7f != 0x7f || bytes[1..31].iter().any(|byte| *byte != 0xff) || bytes[0] < 0xed
}

/// The y of the eight points of small order; of those with an x, both signs are.
const SMALL_ORDER: [[u8; 32]; 5] = [
    [0; 32],
    with_ends(0x01, 0x00, 0x00),
    with_ends(0xec, 0xff, 0x7f),
    [
        0x26, 0xe8, 0x95, 0x8f, 0xc2, 0xb2, 0x27, 0xb0, 0x45, 0xc3, 0xf4, 0x89, 0xf2, 0xef, 0x98, 0xf0, 0xd5, 0xdf,
        0xac, 0x05, 0xd3, 0xc6, 0x33, 0x39, 0xb1, 0x38, 0x02, 0x88, 0x6d, 0x53, 0xfc, 0x05,
    ],
    [
        0xc7, 0x17, 0x6a, 0x70, 0x3d, 0x4d, 0xd8, 0x4f, 0xba, 0x3c, 0x0b, 0x76, 0x0d, 0x10, 0x67, 0x0f, 0x2a, 0x20,
        0x53, 0xfa, 0x2c, 0x39, 0xcc, 0xc6, 0x4e, 0xc7, 0xfd, 0x77, 0x92, 0xac, 0x03, 0x7a,
    ],
];

const fn with_ends(first: u8, between: u8, last: u8) -> [u8; 32] {
    let mut bytes = [between; 32];
    bytes[0] = first;
    bytes[31] = last;
    bytes
}

/// True for every encoding with a reduced y of a point of small order.
fn is_small_order(bytes: &[u8; 32]) -> bool {
    let mut y = *bytes;
    y[31] &= 0x7f;
    SMALL_ORDER.contains(&y)
}

/// What `VerifyingKey::verify_strict` accepts, and nothing else, for a key that [`checked`] let pass. That function also
/// decompresses the signature's point, only to see that it is not of small order: its bytes say so too, because they must be
/// equal to the encoding of a point that was computed. A quarter of the time.
fn verify_strictly(key: &VerifyingKey, message: &[u8], signature: &[u8; 64]) -> bool {
    let signature = Signature::from_bytes(signature);
    !is_small_order(signature.r_bytes()) && key.verify(message, &signature).is_ok()
}

fn from_bech32(hrp: Hrp, text: &str) -> Result<[u8; 32], IdentityFault> {
    let parsed = CheckedHrpstring::new::<Bech32m>(text).map_err(|_| IdentityFault::Checksum)?;
    if parsed.hrp() != hrp {
        return Err(IdentityFault::WrongPrefix);
    }
    // The last character has bits to spare; only zeros there, so that an id has one text.
    parsed.validate_segwit_padding().map_err(|_| IdentityFault::NotAnId)?;
    let mut bytes = [0; 32];
    let mut rest = parsed.byte_iter();
    for byte in &mut bytes {
        *byte = rest.next().ok_or(IdentityFault::NotAnId)?;
    }
    if rest.next().is_some() { Err(IdentityFault::NotAnId) } else { Ok(bytes) }
}

fn write_bech32(f: &mut fmt::Formatter<'_>, hrp: Hrp, bytes: &[u8]) -> fmt::Result {
    bech32::encode_lower_to_fmt::<Bech32m, _>(f, hrp, bytes).map_err(|_| fmt::Error)
}

macro_rules! key_id {
    ($(#[$doc:meta])* $name:ident, $hrp:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        pub struct $name(#[serde(with = "codec::words")] [u8; 32]);

        impl $name {
            /// Checks that `bytes` are a canonical public key that is not of small order.
            ///
            /// # Errors
            /// [`IdentityFault::NotAKey`] and [`IdentityFault::SmallOrder`].
            pub fn from_bytes(bytes: [u8; 32]) -> Result<$name, IdentityFault> {
                checked(bytes).map(|_| $name(bytes))
            }

            /// Takes bytes that a record file's digest chain vouches for. A wrong value here names nobody: every
            /// signature check against it fails.
            pub fn from_stored(bytes: [u8; 32]) -> $name {
                $name(bytes)
            }

            /// The 32 bytes of the key.
            pub fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }

            /// True if this key signed `message`, which begins with the domain of whoever asks. Accepts what
            /// `verify_strict` of ed25519-dalek accepts: cofactorless, no key and no point of small order.
            pub fn verify(&self, message: &[u8], signature: &[u8; 64]) -> bool {
                checked(self.0).is_ok_and(|key| verify_strictly(&key, message, signature))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_bech32(f, $hrp, &self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_bech32(f, $hrp, &self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<$name, D::Error> {
                let bytes = codec::words::deserialize(deserializer)?;
                $name::from_bytes(bytes).map_err(serde::de::Error::custom)
            }
        }
    };
}

key_id! {
    /// A node, named by its Ed25519 public key. Shown as bech32m with the prefix `hf`.
    PeerId, PEER_HRP
}
key_id! {
    /// A network, named by its authority's Ed25519 public key. Shown as bech32m with the prefix `hfnet`.
    NetworkId, NETWORK_HRP
}

impl PeerId {
    /// `hf1` and the first eight characters: for tables and logs.
    pub fn short(&self) -> String {
        let mut text = self.to_string();
        text.truncate("hf1".len() + SHORT_CHARACTERS);
        text
    }

    /// 64 lower-case hex digits.
    pub fn to_hex(&self) -> String {
        data_encoding::HEXLOWER.encode(&self.0)
    }

    /// The `did:key` form: base58btc of the multicodec prefix and the key.
    pub fn to_did(&self) -> String {
        let mut bytes = DID_KEY_ED25519.to_vec();
        bytes.extend_from_slice(&self.0);
        format!("{DID_PREFIX}{}", bs58::encode(bytes).into_string())
    }
}

impl FromStr for PeerId {
    type Err = IdentityFault;

    /// Reads a whole id: `hf1...`, 64 hex digits or `did:key:z...`.
    fn from_str(text: &str) -> Result<PeerId, IdentityFault> {
        if let Some(encoded) = text.strip_prefix(DID_PREFIX) {
            if encoded.len() > DID_CHARACTERS_MAX {
                return Err(IdentityFault::NotAnId);
            }
            let bytes = bs58::decode(encoded).into_vec().map_err(|_| IdentityFault::NotAnId)?;
            let key = bytes.strip_prefix(&DID_KEY_ED25519).ok_or(IdentityFault::WrongPrefix)?;
            return PeerId::from_bytes(key.try_into().map_err(|_| IdentityFault::NotAnId)?);
        }
        if text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit()) {
            let bytes = HEXLOWER_PERMISSIVE.decode(text.as_bytes()).map_err(|_| IdentityFault::NotAnId)?;
            return PeerId::from_bytes(bytes.try_into().map_err(|_| IdentityFault::NotAnId)?);
        }
        let lower = text.to_ascii_lowercase();
        if lower.starts_with("hf1") {
            return PeerId::from_bytes(from_bech32(PEER_HRP, text)?);
        }
        Err(if lower.starts_with("hfnet1") { IdentityFault::WrongPrefix } else { IdentityFault::NotAnId })
    }
}

impl FromStr for NetworkId {
    type Err = IdentityFault;
    fn from_str(text: &str) -> Result<NetworkId, IdentityFault> {
        NetworkId::from_bytes(from_bech32(NETWORK_HRP, text)?)
    }
}

/// One run of a node: 128 random bits that whoever starts it draws.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Incarnation(#[serde(with = "codec::words")] pub [u8; 16]);

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An Ed25519 secret key. Zeroed when dropped; never shown, logged or serialized.
///
/// aws-lc-rs signs, in half of dalek's time; where it cannot, dalek does. A signature is a function of key and message (RFC 8032,
/// section 5.1.6), so that nobody can tell which it was.
#[derive(Clone)]
pub struct SecretKey {
    seed: Arc<Zeroizing<[u8; 32]>>,
    pair: Option<Arc<Ed25519KeyPair>>,
    public: [u8; 32],
}

impl SecretKey {
    /// The key with this 32-byte seed (RFC 8032, section 5.1.5).
    pub fn from_seed(seed: &[u8; 32]) -> SecretKey {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed).ok();
        let public = pair.as_ref().and_then(|pair| pair.public_key().as_ref().try_into().ok());
        let public = public.unwrap_or_else(|| SigningKey::from_bytes(seed).verifying_key().to_bytes());
        SecretKey { seed: Arc::new(Zeroizing::new(*seed)), pair: pair.map(Arc::new), public }
    }

    /// Whom this key speaks for.
    pub fn peer_id(&self) -> PeerId {
        PeerId(self.public)
    }

    /// The network that this key is the authority of, if it is used as one.
    pub fn network_id(&self) -> NetworkId {
        NetworkId(self.public)
    }

    /// An Ed25519 signature over `message`. Callers put a domain in front; TLS has its own (RFC 8446, section 4.4.3).
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        let signed = self.pair.as_ref().and_then(|pair| pair.try_sign(message).ok());
        signed
            .and_then(|signature| signature.as_ref().try_into().ok())
            .unwrap_or_else(|| self.signing_key().sign(message).to_bytes())
    }

    /// The dalek key, for encoding it as PKCS#8.
    pub fn signing_key(&self) -> SigningKey {
        SigningKey::from_bytes(&self.seed)
    }
}

impl From<SigningKey> for SecretKey {
    fn from(key: SigningKey) -> SecretKey {
        SecretKey::from_seed(key.as_bytes())
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey(of {})", self.peer_id().short())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(seed: u8) -> PeerId {
        SecretKey::from_seed(&[seed; 32]).peer_id()
    }

    #[test]
    fn every_form_reads_back() {
        let id = peer(1);
        for text in
            [id.to_string(), id.to_string().to_uppercase(), id.to_hex(), id.to_hex().to_uppercase(), id.to_did()]
        {
            assert_eq!(text.parse(), Ok(id), "{text}");
        }
        assert!(id.to_string().starts_with(&id.short()));
        assert_eq!(id.short().len(), 11);
    }

    #[test]
    fn one_wrong_character_is_caught() {
        let text = peer(2).to_string();
        for at in 3..text.len() {
            let mut typo = text.clone().into_bytes();
            typo[at] = if typo[at] == b'q' { b'p' } else { b'q' };
            let typo = String::from_utf8(typo).unwrap();
            assert_eq!(typo.parse::<PeerId>(), Err(IdentityFault::Checksum), "{typo}");
        }
    }

    #[test]
    fn an_id_has_one_text() {
        use bech32::primitives::iter::{ByteIterExt, Fe32IterExt};
        let bytes = *peer(1).as_bytes();
        let mut digits: Vec<bech32::Fe32> = bytes.iter().copied().bytes_to_fes().collect();
        let last = digits.last_mut().unwrap();
        *last = bech32::Fe32::try_from(last.to_u8() | 1).unwrap();
        let text: String = digits.into_iter().with_checksum::<Bech32m>(&PEER_HRP).chars().collect();
        assert_eq!(text.parse::<PeerId>(), Err(IdentityFault::NotAnId), "{text}");
        let long = format!("{DID_PREFIX}{}", "2".repeat(100_000));
        assert_eq!(long.parse::<PeerId>(), Err(IdentityFault::NotAnId));
    }

    #[test]
    fn a_key_that_was_checked_is_known_by_all_of_its_bytes() {
        let known = peer(3);
        for change in 0..32 {
            let mut bytes = *known.as_bytes();
            assert_eq!(PeerId::from_bytes(bytes), Ok(known));
            bytes[change] ^= 0x40;
            let fresh = decompressed(&bytes).map(|_| PeerId(bytes));
            assert_eq!([PeerId::from_bytes(bytes), PeerId::from_bytes(bytes)], [fresh, fresh], "byte {change}");
        }
    }

    #[test]
    fn keys_that_name_nobody_are_refused() {
        let mut small_order = [0; 32];
        small_order[0] = 1;
        assert_eq!(PeerId::from_bytes(small_order), Err(IdentityFault::SmallOrder));
        // The same point with a sign that it cannot have; the greatest of what is not below p; what is one below p.
        small_order[31] = 0x80;
        assert!(PeerId::from_bytes(small_order).is_err());
        let below_p = |first: u8| [[first].as_slice(), &[0xff; 30], &[0x7f]].concat().try_into().unwrap();
        assert!([0xed, 0xee, 0xff].iter().all(|first| !is_reduced(&below_p(*first))));
        assert!(is_reduced(&below_p(0xec)));
        // y = p + 1 encodes the same point as y = 1.
        let mut not_canonical = [0xff; 32];
        not_canonical[0] = 0xee;
        not_canonical[31] = 0x7f;
        assert_eq!(PeerId::from_bytes(not_canonical), Err(IdentityFault::NotAKey));
        let mut off_curve = [0; 32];
        off_curve[0] = 2;
        assert_eq!(PeerId::from_bytes(off_curve), Err(IdentityFault::NotAKey));
    }

    /// Every torsion point's encoding, and those that only a lenient decoder takes.
    fn small_order_encodings() -> Vec<[u8; 32]> {
        let proper = curve25519_dalek::constants::EIGHT_TORSION.map(|point| point.compress().to_bytes());
        let other_sign = proper.map(|mut bytes| {
            bytes[31] ^= 0x80;
            bytes
        });
        [proper, other_sign].concat()
    }

    #[test]
    fn small_order_is_told_by_the_bytes_alone() {
        for bytes in small_order_encodings() {
            assert!(is_small_order(&bytes), "{bytes:02x?}");
            assert!(VerifyingKey::from_bytes(&bytes).is_ok_and(|key| key.is_weak()), "{bytes:02x?}");
        }
        assert_eq!(SMALL_ORDER.iter().filter(|y| small_order_encodings().contains(*y)).count(), SMALL_ORDER.len());
        for seed in 0..=255 {
            let key = *peer(seed).as_bytes();
            assert!(!is_small_order(&key) && !VerifyingKey::from_bytes(&key).unwrap().is_weak());
        }
    }

    /// Signatures of the kinds on which verifiers disagree: a point of small order in the signature, a point or a key with a
    /// part of small order, `s` not reduced, a point that is no canonical encoding, each bit changed.
    #[test]
    fn a_signature_counts_exactly_where_verify_strict_takes_it() {
        use curve25519_dalek::constants::{ED25519_BASEPOINT_POINT, EIGHT_TORSION};
        use curve25519_dalek::{EdwardsPoint, Scalar};
        use sha2::{Digest, Sha512};
        let message = b"domain/a message";
        let secret = Scalar::from(0x5eed_5eed_u64);
        let challenge = |r: &[u8; 32], a: &[u8; 32]| {
            let digest = Sha512::new().chain_update(r).chain_update(a).chain_update(message);
            Scalar::from_bytes_mod_order_wide(&digest.finalize().into())
        };
        let joined = |r: &[u8; 32], s: &[u8; 32]| -> [u8; 64] { [*r, *s].concat().try_into().unwrap() };
        let mut cases = Vec::new();
        for torsion in EIGHT_TORSION {
            let key: EdwardsPoint = ED25519_BASEPOINT_POINT * secret + torsion;
            let key = key.compress().to_bytes();
            for nonce in [Scalar::ZERO, Scalar::from(77_u64)] {
                for shift in EIGHT_TORSION {
                    // A torsion part in the key is met by one in the point, for one in eight of the challenges.
                    let r = (ED25519_BASEPOINT_POINT * nonce + shift).compress().to_bytes();
                    let s = nonce + challenge(&r, &key) * secret;
                    cases.push((key, joined(&r, s.as_bytes())));
                }
            }
        }
        let signed = |seed: u8| (*peer(seed).as_bytes(), SecretKey::from_seed(&[seed; 32]).sign(message));
        let (key, good) = signed(9);
        // s + l, where l is the order of the group: the same scalar again.
        let order = Scalar::ZERO - Scalar::ONE;
        let mut carry = 1_u16;
        let mut beyond = good;
        for (at, byte) in order.as_bytes().iter().enumerate() {
            carry += u16::from(beyond[32 + at]) + u16::from(*byte);
            beyond[32 + at] = carry as u8;
            carry >>= 8;
        }
        cases.extend([(key, good), (key, beyond)]);
        for y in SMALL_ORDER.into_iter().chain([with_ends(0xee, 0xff, 0x7f), with_ends(0xed, 0xff, 0x7f)]) {
            cases.extend([(key, joined(&y, &[0; 32])), (key, joined(&y, good[32..].try_into().unwrap()))]);
        }
        cases.extend((0..512).map(|bit| {
            let mut changed = good;
            changed[bit / 8] ^= 1 << (bit % 8);
            (key, changed)
        }));
        let mut taken = 0;
        let mut lenient = 0;
        for (key, signature) in cases {
            let theirs = VerifyingKey::from_bytes(&key).unwrap();
            let parsed = Signature::from_bytes(&signature);
            let expected = theirs.verify_strict(message, &parsed).is_ok();
            let ours = PeerId::from_bytes(key).is_ok_and(|peer| peer.verify(message, &signature));
            assert_eq!(ours, expected, "key {key:02x?}, signature {signature:02x?}");
            taken += usize::from(expected);
            lenient += usize::from(!expected && theirs.verify(message, &parsed).is_ok());
        }
        assert!(taken > 1 && lenient > 0, "{taken} taken, {lenient} that only a lenient check takes");
    }

    #[test]
    fn both_libraries_sign_the_same() {
        for seed in 0..64_u8 {
            let key = SecretKey::from_seed(&[seed; 32]);
            let dalek = key.signing_key();
            assert!(key.pair.is_some());
            assert_eq!(key.peer_id().as_bytes(), &dalek.verifying_key().to_bytes());
            let message = vec![seed; usize::from(seed) * 5];
            let without = SecretKey { pair: None, ..key.clone() };
            assert_eq!(key.sign(&message), dalek.sign(&message).to_bytes());
            assert_eq!(without.sign(&message), key.sign(&message));
            assert!(key.peer_id().verify(&message, &key.sign(&message)));
        }
    }

    #[test]
    fn kinds_are_not_mixed_up() {
        let network = NetworkId::from_stored(*peer(3).as_bytes());
        assert!(network.to_string().starts_with("hfnet1"));
        assert_eq!(network.to_string().parse::<PeerId>(), Err(IdentityFault::WrongPrefix));
        assert_eq!(network.to_string().parse::<NetworkId>(), Ok(network));
        assert_eq!("somebody".parse::<PeerId>(), Err(IdentityFault::NotAnId));
    }

    #[test]
    fn a_secret_does_not_show() {
        let shown = format!("{:?}", SecretKey::from_seed(&[7; 32]));
        assert!(!shown.contains("07070707") && !shown.contains("[7, 7"), "{shown}");
    }
}

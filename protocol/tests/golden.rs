//! The bytes of everything that the protocol sends, signs or shows, committed under `golden/`.
//!
//! Each file lists the fields of one value in hex, a field a line; what follows `#` is for readers. A change of byte
//! order, integer width, field order, variant number or signing domain changes a file, and is a new protocol version.
//! Keys come from the seeds `[n; 32]`, and Ed25519 is deterministic (RFC 8032), so signatures are vectors too.
#![allow(clippy::unwrap_used, reason = "a test ends where a value is not what it must be")]

use std::fmt::Debug;
use std::net::SocketAddr;

use handfast_protocol::exchange::{Answer, Disposition, Offer, Receipt, Standing, networks_shown};
use handfast_protocol::join::{JoinAnswer, JoinAsk, JoinReply, JoinRequest, NoticePage, RosterEntry, RosterPage};
use handfast_protocol::limits::{
    ADDRESS_RECORD_BYTES_MAX, FRAME_BYTES_MAX, HEAD_BYTES_MAX, JOIN_FRAME_BYTES_MAX, MEMBERSHIP_BYTES_MAX,
    NOTICE_BYTES, STATEMENT_BYTES_MAX,
};
use handfast_protocol::stream::{Extension, Extensions, Head, Ping, StreamKind};
use handfast_protocol::{
    Address, AddressRecord, Certificate, Digest, ExpulsionsHeld, Held, Incarnation, InviteSecret, JoinRefusal, Kind,
    Membership, NetworkId, NetworkName, Note, Notice, NoticeKind, PeerId, Role, Scope, SecretKey, ServiceName,
    SignedAddressRecord, SignedNotice, SignedStatement, Statement, Terms, Ticket, UnixMillis, Verified,
    VerifiedMembership, VerifiedNotice, codec,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

const ALICE: u8 = 1;
const BOB: u8 = 2;
const NETWORK: u8 = 9;

fn key(seed: u8) -> SecretKey {
    SecretKey::from_seed(&[seed; 32])
}

fn network() -> NetworkId {
    NetworkId::from_bytes(*key(NETWORK).peer_id().as_bytes()).unwrap()
}

fn service(name: &str) -> ServiceName {
    ServiceName::new(name).unwrap()
}

fn grant_full() -> Verified {
    let terms = Terms {
        kind: Kind::Grant,
        epoch: 0x0102_0304_0506_0708,
        issued_at: UnixMillis(1_700_000_000_000),
        expires_at: Some(UnixMillis(1_702_592_000_000)),
        scope: Some(Scope::new(vec![service("files"), service("backup-2.v_1")]).unwrap()),
        network: Some(network()),
        note: Note::new("naïve café: 日本").unwrap(),
    };
    Statement { issuer: key(ALICE).peer_id(), subject: key(BOB).peer_id(), terms }.sign(&key(ALICE)).unwrap()
}

fn revoke_minimal() -> Verified {
    let terms = Terms {
        kind: Kind::Revoke,
        epoch: 7,
        issued_at: UnixMillis(0),
        expires_at: None,
        scope: None,
        network: None,
        note: Note::default(),
    };
    Statement { issuer: key(BOB).peer_id(), subject: key(ALICE).peer_id(), terms }.sign(&key(BOB)).unwrap()
}

fn address_record() -> SignedAddressRecord {
    let at = |text: &str| Address::from(text.parse::<SocketAddr>().unwrap());
    let record = AddressRecord {
        peer: key(ALICE).peer_id(),
        addresses: vec![at("192.0.2.1:4433"), at("[2001:db8::1]:258")],
        epoch: 3,
        expires_at: UnixMillis(1_700_086_400_000),
    };
    record.sign(&key(ALICE)).unwrap()
}

fn extensions() -> Extensions {
    let extension = |tag, bytes: &[u8]| Extension { tag, critical: false, bytes: bytes.to_vec() };
    Extensions::new(vec![extension(0x0203, b"xyz"), extension(1, b"")])
}

fn offer_full() -> Offer {
    Offer {
        statement: Some(grant_full().signed().clone()),
        yours: Some(revoke_minimal().signed().clone()),
        incarnation: Incarnation([0xaa; 16]),
        address: Some(address_record()),
        extensions: extensions(),
    }
}

fn answer(disposition: Disposition) -> Answer {
    Answer {
        disposition,
        holds: None,
        statement: None,
        yours: None,
        incarnation: Incarnation([0xbb; 16]),
        address: None,
        extensions: Extensions::default(),
    }
}

/// The bytes of a committed vector: hex digits, with spaces and comments left out.
fn golden(text: &str) -> Vec<u8> {
    let digits: String =
        text.lines().filter_map(|line| line.split('#').next()).flat_map(str::split_whitespace).collect();
    data_encoding::HEXLOWER.decode(digits.as_bytes()).unwrap()
}

/// The committed bytes decode to `value`, and `value` encodes to them.
fn check<T: Serialize + DeserializeOwned + PartialEq + Debug>(name: &str, committed: &str, value: &T, max: usize) {
    let bytes = codec::encode(value);
    let expected = golden(committed);
    assert_eq!(
        data_encoding::HEXLOWER.encode(&bytes),
        data_encoding::HEXLOWER.encode(&expected),
        "{name} has other bytes than committed"
    );
    assert_eq!(codec::decode::<T>(&expected, max).as_ref(), Ok(value), "{name}");
    assert!(codec::decode::<T>(&expected[..expected.len() - 1], max).is_err(), "{name}, one byte short");
    let frame = codec::frame(value);
    assert_eq!(frame[..4], (bytes.len() as u32).to_le_bytes(), "{name}");
    assert_eq!(frame[4..], bytes, "{name}");
}

/// Checks each value against `golden/NAME.hex`.
macro_rules! check_all {
    ($max:expr; $($name:literal: $value:expr,)*) => {
        $(check($name, include_str!(concat!("golden/", $name, ".hex")), &$value, $max);)*
    };
}

#[test]
fn heads_have_their_bytes() {
    check_all! { HEAD_BYTES_MAX;
        "head_exchange": Head::new(StreamKind::Exchange),
        "head_ping": Head::new(StreamKind::Ping),
        "head_join": Head::new(StreamKind::Join),
        "head_service": Head { extensions: extensions(), ..Head::new(StreamKind::Service(service("backup"))) },
    }
}

#[test]
fn exchange_frames_and_ping_have_their_bytes() {
    let held = |verified: &Verified| Some(verified.held());
    check_all! { FRAME_BYTES_MAX;
        "offer_full": offer_full(),
        "offer_empty": Offer {
            statement: None,
            yours: None,
            incarnation: Incarnation([0xaa; 16]),
            address: None,
            extensions: Extensions::default(),
        },
        "answer_granted_full": Answer {
            holds: held(&grant_full()),
            statement: Some(revoke_minimal().signed().clone()),
            yours: Some(grant_full().signed().clone()),
            address: Some(address_record()),
            extensions: extensions(),
            ..answer(Disposition::Granted)
        },
        "answer_pending": Answer { holds: held(&grant_full()), ..answer(Disposition::Pending) },
        "answer_refused": Answer {
            statement: Some(revoke_minimal().signed().clone()),
            ..answer(Disposition::Refused)
        },
        "answer_noted": answer(Disposition::Noted),
        "answer_busy": answer(Disposition::Busy { retry_after_ms: 2_000 }),
        "receipt": Receipt { holds: held(&revoke_minimal()), extensions: Extensions::default() },
        "receipt_empty": Receipt { holds: None, extensions: Extensions::default() },
        "ping": Ping { nonce: 0x0102_0304_0506_0708 },
    }
}

#[test]
fn signed_values_have_their_bytes_and_their_signatures_hold() {
    check_all! { STATEMENT_BYTES_MAX;
        "statement_grant_full": *grant_full().signed(),
        "statement_revoke_minimal": *revoke_minimal().signed(),
    }
    check_all! { ADDRESS_RECORD_BYTES_MAX; "address_record": address_record(), }

    let (alice, bob) = (key(ALICE).peer_id(), key(BOB).peer_id());
    let read = |text: &str| codec::decode::<SignedStatement>(&golden(text), STATEMENT_BYTES_MAX).unwrap();
    let grant = read(include_str!("golden/statement_grant_full.hex")).verify(&alice, &bob, None);
    assert_eq!(grant, Ok(grant_full()));
    let revoke = read(include_str!("golden/statement_revoke_minimal.hex")).verify(&bob, &alice, None);
    assert_eq!(revoke, Ok(revoke_minimal()));
    assert!(address_record().verify());
}

/// Of the network: Bob is a sponsor, Alice a member by Bob.
fn certificate(member: u8, role: Role) -> Certificate {
    Certificate {
        network: network(),
        member: key(member).peer_id(),
        epoch: 0x0102_0304_0506_0708,
        issued_at: UnixMillis(1_700_000_000_000),
        expires_at: UnixMillis(1_707_776_000_000),
        role,
    }
}

fn by_authority() -> VerifiedMembership {
    certificate(BOB, Role::Sponsor).by_authority(&key(NETWORK)).unwrap()
}

fn by_sponsor() -> VerifiedMembership {
    certificate(ALICE, Role::Member).by_sponsor(&key(BOB), &by_authority()).unwrap()
}

fn notice(kind: NoticeKind) -> VerifiedNotice {
    let (network, member) = (network(), key(BOB).peer_id());
    let issued_at = UnixMillis(1_700_000_000_000);
    Notice { network, member, number: 5, kind, issued_at }.sign(&key(NETWORK)).unwrap()
}

fn ticket() -> Ticket {
    Ticket {
        network: network(),
        name: NetworkName::new("lab").unwrap(),
        inviter: key(BOB).peer_id(),
        addresses: address_record().record.addresses,
        secret: InviteSecret::new([0x5a; 16]),
        uses: 10,
        valid_from: UnixMillis(1_700_000_000_000),
        expires_at: UnixMillis(1_700_086_400_000),
    }
}

#[test]
fn memberships_and_notices_have_their_bytes_and_their_signatures_hold() {
    check_all! { MEMBERSHIP_BYTES_MAX;
        "membership_by_authority": *by_authority().membership(),
        "membership_by_sponsor": *by_sponsor().membership(),
    }
    check_all! { NOTICE_BYTES;
        "notice_expel": *notice(NoticeKind::Expel).signed(),
        "notice_readmit": *notice(NoticeKind::Readmit).signed(),
    }
    let bytes = golden(include_str!("golden/membership_by_sponsor.hex"));
    let read: Membership = codec::decode(&bytes, MEMBERSHIP_BYTES_MAX).unwrap();
    assert_eq!(read.verify(), Ok(by_sponsor()));
    let bytes = golden(include_str!("golden/notice_expel.hex"));
    let read: SignedNotice = codec::decode(&bytes, NOTICE_BYTES).unwrap();
    assert_eq!(read.verify(), Ok(notice(NoticeKind::Expel)));
}

#[test]
fn join_frames_have_their_bytes() {
    let own = || Box::new(by_sponsor().membership().clone());
    let ask = |request| JoinAsk { request, extensions: Extensions::default() };
    let says = |reply| JoinAnswer { reply, extensions: Extensions::default() };
    let (after, network, secret) = (Some(key(BOB).peer_id()), network(), InviteSecret::new([0x5a; 16]));
    let entry = RosterEntry { membership: *own(), address: Some(address_record()) };
    check_all! { JOIN_FRAME_BYTES_MAX;
        "join_redeem": JoinAsk { extensions: extensions(), ..ask(JoinRequest::Redeem { network, secret }) },
        "join_renew": ask(JoinRequest::Renew { membership: own() }),
        "join_roster": ask(JoinRequest::Roster { membership: own(), after: None }),
        "join_expulsions": ask(JoinRequest::Expulsions { membership: own(), after }),
        "join_certified": JoinAnswer { extensions: extensions(), ..says(JoinReply::Certified(own())) },
        "join_roster_page": says(JoinReply::Roster(RosterPage { entries: vec![entry], more: true })),
        "join_notice_page": says(JoinReply::Expulsions(NoticePage {
            notices: vec![*notice(NoticeKind::Expel).signed()],
            more: false,
        })),
        "join_refused": says(JoinReply::refused(JoinRefusal::Exhausted)),
        "join_busy": says(JoinReply::Busy(2_000)),
    }
}

/// The extension that an Offer and an Answer show networks with, and what a node that holds one notice says that it holds.
#[test]
fn networks_in_an_offer_have_their_bytes() {
    let expulsions = ExpulsionsHeld::default().replacing(None, Some(notice(NoticeKind::Expel).digest()));
    let standing = Standing { membership: by_sponsor().membership().clone(), expulsions };
    check_all! { FRAME_BYTES_MAX;
        "offer_networks": Offer {
            statement: None,
            yours: None,
            address: None,
            extensions: networks_shown(&[standing]),
            ..offer_full()
        },
    }
}

#[test]
fn a_ticket_has_its_text_and_an_invite_its_name() {
    let committed = include_str!("golden/ticket.txt");
    let lines: Vec<&str> = committed.lines().filter(|line| !line.starts_with('#')).collect();
    let [text, id] = lines[..] else { panic!("two lines: {committed}") };
    assert_eq!(ticket().to_text().as_str(), text);
    assert_eq!(text.parse(), Ok(ticket()));
    assert_eq!(ticket().secret.id().to_string(), id);
}

#[test]
fn digests_are_blake3_of_the_domain_and_the_sentence() {
    let check = |committed: &str, verified: Verified| {
        let signed = golden(committed);
        let sentence = &signed[..signed.len() - 64];
        let message = [b"handfast/1/statement", sentence].concat();
        assert_eq!(verified.digest(), Digest(blake3::hash(&message).into()));
        assert_eq!(verified.held(), Held { epoch: verified.terms().epoch, digest: verified.digest() });
    };
    check(include_str!("golden/statement_grant_full.hex"), grant_full());
    check(include_str!("golden/statement_revoke_minimal.hex"), revoke_minimal());
}

#[test]
fn ids_have_their_texts() {
    let mut rows = 0;
    for line in include_str!("golden/ids.txt").lines().filter(|line| !line.starts_with('#')) {
        let [seed, hex, bech32m, did, net] = line.split_whitespace().collect::<Vec<_>>()[..] else {
            panic!("five columns: {line}");
        };
        let id = key(seed.parse().unwrap()).peer_id();
        assert_eq!((id.to_hex().as_str(), id.to_string().as_str(), id.to_did().as_str()), (hex, bech32m, did));
        for text in [hex, bech32m, did] {
            assert_eq!(text.parse::<PeerId>(), Ok(id), "{text}");
        }
        let network = NetworkId::from_bytes(*id.as_bytes()).unwrap();
        assert_eq!(network.to_string(), net);
        assert_eq!(net.parse::<NetworkId>(), Ok(network));
        rows += 1;
    }
    assert_eq!(rows, 3);
}

//! TOTAL: whatever bytes or texts a stranger sends, the answer is a value or an error, and a value has one encoding.
#![allow(clippy::unwrap_used, reason = "a test ends where a value is not what it must be")]

use std::net::SocketAddr;

use handfast_protocol::codec::{self, Deframer};
use handfast_protocol::exchange::{
    Answer, Disposition, Initiator, InitiatorInput, Offer, Parties, Receipt, Responder, ResponderInput, Standing,
    networks_shown,
};
use handfast_protocol::join::{
    Errand, JoinAnswer, JoinAsk, JoinHost, JoinHostInput, JoinReply, JoinRequest, Joiner, JoinerInput, NoticePage,
    RosterEntry, RosterPage,
};
use handfast_protocol::limits::FRAME_BYTES_MAX;
use handfast_protocol::stream::{Extension, Extensions, Head, Ping, StreamKind};
use handfast_protocol::{
    Address, AddressRecord, Certificate, ExpulsionsHeld, Incarnation, InviteSecret, Kind, Membership, NetworkId,
    NetworkName, Note, Notice, NoticeKind, PeerId, Role, Scope, SecretKey, ServiceName, SignedAddressRecord,
    SignedNotice, SignedStatement, Statement, Terms, Ticket, UnixMillis,
};
use proptest::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;

fn key(seed: u8) -> SecretKey {
    SecretKey::from_seed(&[seed; 32])
}

fn statement() -> SignedStatement {
    let terms = Terms {
        kind: Kind::Grant,
        epoch: 5,
        issued_at: UnixMillis(6),
        expires_at: Some(UnixMillis(7)),
        scope: Some(Scope::new(vec![ServiceName::new("a").unwrap(), ServiceName::new("b").unwrap()]).unwrap()),
        network: Some(NetworkId::from_bytes(*key(9).peer_id().as_bytes()).unwrap()),
        note: Note::new("note").unwrap(),
    };
    let statement = Statement { issuer: key(1).peer_id(), subject: key(2).peer_id(), terms };
    statement.sign(&key(1)).unwrap().signed().clone()
}

fn address_record() -> SignedAddressRecord {
    let addresses = vec![Address::from(SocketAddr::from(([192, 0, 2, 1], 4433)))];
    AddressRecord { peer: key(1).peer_id(), addresses, epoch: 1, expires_at: UnixMillis(2) }.sign(&key(1)).unwrap()
}

/// A member by a sponsor.
fn membership() -> Membership {
    let certificate = |member: u8, role| Certificate {
        network: key(9).network_id(),
        member: key(member).peer_id(),
        epoch: 1,
        issued_at: UnixMillis(2),
        expires_at: UnixMillis(3),
        role,
    };
    let sponsor = certificate(2, Role::Sponsor).by_authority(&key(9)).unwrap();
    certificate(1, Role::Member).by_sponsor(&key(2), &sponsor).unwrap().membership().clone()
}

fn notice() -> SignedNotice {
    let (network, member) = (key(9).network_id(), key(3).peer_id());
    let notice = Notice { network, member, number: 4, kind: NoticeKind::Expel, issued_at: UnixMillis(5) };
    *notice.sign(&key(9)).unwrap().signed()
}

/// One valid encoding of every kind of value that comes from the wire.
fn valid() -> Vec<Vec<u8>> {
    let extensions = Extensions::new(vec![Extension { tag: 1, critical: false, bytes: vec![2; 3] }]);
    let offer = Offer {
        statement: Some(statement()),
        yours: None,
        incarnation: Incarnation([3; 16]),
        address: Some(address_record()),
        extensions: extensions.clone(),
    };
    let answer = Answer {
        disposition: Disposition::Busy { retry_after_ms: 1 },
        holds: None,
        statement: None,
        yours: Some(statement()),
        incarnation: Incarnation([3; 16]),
        address: None,
        extensions: extensions.clone(),
    };
    let (membership, notice) = (membership(), notice());
    let own = || Box::new(membership.clone());
    let ask = |request| codec::encode(&JoinAsk { request, extensions: Extensions::default() });
    let says = |reply| codec::encode(&JoinAnswer { reply, extensions: Extensions::default() });
    let standing = Standing { membership: membership.clone(), expulsions: ExpulsionsHeld::default() };
    let entry = RosterEntry { membership: membership.clone(), address: Some(address_record()) };
    vec![
        codec::encode(&membership),
        codec::encode(&notice),
        codec::encode(&Offer { extensions: networks_shown(&[standing]), ..offer.clone() }),
        ask(JoinRequest::Redeem { network: membership.network(), secret: InviteSecret::new([8; 16]) }),
        ask(JoinRequest::Roster { membership: own(), after: Some(key(3).peer_id()) }),
        ask(JoinRequest::Renew { membership: own() }),
        says(JoinReply::Certified(own())),
        says(JoinReply::Roster(RosterPage { entries: vec![entry], more: false })),
        says(JoinReply::Expulsions(NoticePage { notices: vec![notice], more: true })),
        says(JoinReply::Refused(3)),
        codec::encode(&offer),
        codec::encode(&answer),
        codec::encode(&Receipt { holds: None, extensions }),
        codec::encode(&Ping { nonce: 4 }),
        codec::encode(&Head::new(StreamKind::Service(ServiceName::new("files").unwrap()))),
        codec::encode(&statement()),
        codec::encode(&address_record()),
    ]
}

/// Decoding as `T` does not panic, and what it accepts encodes back to the same bytes.
fn one_encoding<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> bool {
    let _ = codec::decode_stored::<T>(bytes, FRAME_BYTES_MAX);
    match codec::decode::<T>(bytes, FRAME_BYTES_MAX) {
        Ok(value) => {
            assert_eq!(codec::encode(&value), bytes);
            true
        }
        Err(_) => false,
    }
}

/// Decodes as every kind; returns how many accept.
fn decode_as_everything(bytes: &[u8]) -> usize {
    let _ = Head::read(bytes);
    [
        one_encoding::<Offer>(bytes),
        one_encoding::<Answer>(bytes),
        one_encoding::<Receipt>(bytes),
        one_encoding::<Ping>(bytes),
        one_encoding::<Head>(bytes),
        one_encoding::<SignedStatement>(bytes),
        one_encoding::<SignedAddressRecord>(bytes),
        one_encoding::<Membership>(bytes),
        one_encoding::<SignedNotice>(bytes),
        one_encoding::<JoinAsk>(bytes),
        one_encoding::<JoinAnswer>(bytes),
    ]
    .into_iter()
    .filter(|accepted| *accepted)
    .count()
}

fn parties() -> Parties {
    Parties { me: key(2).peer_id(), peer: key(1).peer_id(), ours: None, theirs: None }
}

/// Both machines survive the body in every state that reads one.
fn feed_machines(body: &[u8]) {
    let offer = Offer {
        statement: None,
        yours: None,
        incarnation: Incarnation([0; 16]),
        address: None,
        extensions: Extensions::default(),
    };
    let (mut initiator, _) = Initiator::start(parties(), &offer);
    initiator.handle(InitiatorInput::Frame(body.to_vec()));
    let mut responder = Responder::new(parties());
    responder.handle(ResponderInput::Frame(body.to_vec()));
    responder.handle(ResponderInput::Frame(body.to_vec()));
    assert!(responder.is_finished(), "a second frame where none is due ends the exchange");
    for errand in [Errand::Renew(Box::new(membership())), Errand::Resume(Box::new(membership()))] {
        let (mut joiner, _) = Joiner::start(key(1).peer_id(), errand);
        joiner.handle(JoinerInput::Frame(body.to_vec()));
        joiner.handle(JoinerInput::Frame(body.to_vec()));
        assert!(joiner.is_finished(), "a second frame where none is due ends the conversation");
    }
    let mut host = JoinHost::new();
    host.handle(JoinHostInput::Frame(body.to_vec().into()));
    host.handle(JoinHostInput::Frame(body.to_vec().into()));
    assert!(host.is_finished(), "a second frame where none is due ends the conversation");
}

/// A valid encoding with a few bytes changed, taken away or put in.
fn damaged() -> impl Strategy<Value = Vec<u8>> {
    let edit = (any::<prop::sample::Index>(), any::<u8>(), 0..4u8);
    (prop::sample::select(valid()), prop::collection::vec(edit, 0..4)).prop_map(|(mut bytes, edits)| {
        for (at, value, what) in edits {
            let at = at.index(bytes.len().max(1));
            match what {
                0 if at < bytes.len() => bytes[at] = value,
                1 if at < bytes.len() => bytes[at] ^= 1 << (value % 8),
                2 if at < bytes.len() => drop(bytes.remove(at)),
                _ => bytes.insert(at, value),
            }
        }
        bytes
    })
}

#[test]
fn valid_encodings_are_accepted() {
    for bytes in valid() {
        assert!(decode_as_everything(&bytes) >= 1);
        feed_machines(&bytes);
    }
}

#[test]
fn every_byte_of_every_valid_encoding_may_be_any_byte() {
    for bytes in valid() {
        for at in 0..bytes.len() {
            for value in [0, 1, 2, 0x7f, 0x80, 0xff] {
                let mut changed = bytes.clone();
                changed[at] = value;
                decode_as_everything(&changed);
            }
            decode_as_everything(&bytes[..at]);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_decode_to_nothing_or_to_their_own_encoding(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        decode_as_everything(&bytes);
        feed_machines(&bytes);
    }

    #[test]
    fn damaged_values_decode_to_nothing_or_to_their_own_encoding(bytes in damaged()) {
        decode_as_everything(&bytes);
        feed_machines(&bytes);
    }

    #[test]
    fn a_deframer_gives_the_same_frames_whatever_the_pieces(
        bytes in prop::collection::vec(prop_oneof![Just(0u8), 0..9u8, any::<u8>()], 0..200),
        cuts in prop::collection::vec(1..40usize, 1..20),
    ) {
        let read = |pieces: &mut dyn Iterator<Item = &[u8]>| {
            let mut deframer = Deframer::new(64);
            let mut bodies = Vec::new();
            for piece in pieces {
                deframer.push(piece);
                loop {
                    match deframer.next_frame() {
                        Ok(Some(body)) => bodies.push(body),
                        Ok(None) => break,
                        Err(fault) => return (bodies, Err(fault)),
                    }
                }
            }
            (bodies, Ok(deframer.is_between_frames()))
        };
        let mut rest = &bytes[..];
        let mut pieces = Vec::new();
        for cut in cuts {
            let (piece, after) = rest.split_at(cut.min(rest.len()));
            pieces.push(piece);
            rest = after;
        }
        pieces.push(rest);
        prop_assert_eq!(read(&mut pieces.into_iter()), read(&mut std::iter::once(&bytes[..])));
    }

    #[test]
    fn texts_are_refused_or_shown_as_they_were_read(text in ".{0,120}") {
        if let Ok(note) = Note::new(&text) {
            prop_assert_eq!(note.as_str(), &text);
            prop_assert!(!text.chars().any(handfast_protocol::text::is_unsafe));
        }
        if let Ok(name) = ServiceName::new(&text) {
            prop_assert_eq!(name.as_str(), &text);
        }
        if let Ok(name) = NetworkName::new(&text) {
            prop_assert_eq!(name.as_str(), &text);
        }
        prop_assert!(text.parse::<PeerId>().is_err());
        prop_assert!(text.parse::<Ticket>().is_err());
        prop_assert!(text.parse::<NetworkId>().is_err());
    }

    #[test]
    fn any_32_bytes_are_no_key_or_a_key_with_its_texts(bytes in any::<[u8; 32]>()) {
        if let Ok(id) = PeerId::from_bytes(bytes) {
            prop_assert_eq!(id.as_bytes(), &bytes);
            for text in [id.to_string(), id.to_hex(), id.to_did()] {
                prop_assert_eq!(text.parse::<PeerId>(), Ok(id));
            }
        }
    }
}

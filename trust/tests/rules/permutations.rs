//! Whatever arrives, in whatever order and however often, ends in the same two edges.

use std::sync::Arc;

use handfast_protocol::{Digest, Kind, Terms, UnixMillis, Verified};
use handfast_trust::rules::Grant;
use handfast_trust::{TrustRecord, TrustState, Urgency};

use crate::support::{NOON, Node, Peer, note, shown, terms};

/// Longest word: every permutation of every set of up to so many statements is in it, with duplicates in every place.
const LETTERS_MAX: usize = 5;

/// One statement, by whom.
#[derive(Clone)]
enum Letter {
    Theirs(Verified),
    /// Ours, proven to us.
    Ours(Verified),
}

/// Both kinds, neighbouring and equal epochs, two different statements under one number, from both issuers.
fn alphabet(peer: &Peer) -> Vec<Letter> {
    let other = |kind, epoch| Terms { note: note("other"), ..terms(kind, epoch) };
    vec![
        Letter::Theirs(peer.grants(5)),
        Letter::Theirs(peer.revokes(5)),
        Letter::Theirs(peer.grants(6)),
        Letter::Theirs(peer.says(other(Kind::Grant, 6))),
        Letter::Ours(peer.was_told(terms(Kind::Grant, 8))),
        Letter::Ours(peer.was_told(terms(Kind::Revoke, 9))),
        Letter::Ours(peer.was_told(terms(Kind::Grant, 12))),
        Letter::Ours(peer.was_told(other(Kind::Revoke, 9))),
    ]
}

/// What must not depend on the order.
type Outcome = (Option<Digest>, Option<Digest>, TrustState);

fn outcome(node: &Node, peer: &Peer) -> Outcome {
    let record = node.book.record(&peer.id());
    let digest = |edge: Option<&handfast_trust::Edge>| edge.map(|edge| edge.digest);
    let record = record.as_deref();
    (
        digest(record.and_then(|record| record.ours.as_ref())),
        digest(record.and_then(|record| record.theirs.as_ref())),
        node.state(peer, NOON),
    )
}

fn put_back(node: &Node, peer: &Peer, record: Option<&Arc<TrustRecord>>) {
    node.book.store().write(|table| match record {
        Some(record) => table.put_shared(peer.id(), record.clone(), Urgency::Critical),
        None => drop(table.remove(&peer.id(), Urgency::Critical)),
    });
}

fn hear(node: &Node, peer: &Peer, letter: &Letter, now: UnixMillis) {
    let shown = match letter {
        Letter::Theirs(theirs) => shown(Some(theirs), None),
        Letter::Ours(ours) => shown(None, Some(ours)),
    };
    node.book.merge(peer.id(), &shown, None, now);
}

/// The greatest of those that count, by the words of the design and not by `Ord`.
fn winner<'s>(statements: impl Iterator<Item = &'s Verified>) -> Option<Digest> {
    let mut left: Vec<&Verified> = statements.collect();
    let epoch = left.iter().map(|one| one.terms().epoch).max()?;
    left.retain(|one| one.terms().epoch == epoch);
    if left.iter().any(|one| one.terms().kind == Kind::Revoke) {
        left.retain(|one| one.terms().kind == Kind::Revoke);
    }
    left.iter().map(|one| one.digest()).max_by_key(|digest| digest.to_string())
}

/// Walks all words over `alphabet` from the record as it is. What is expected depends only on the set of the letters
/// (bit i: letter i).
fn every_word(node: &Node, peer: &Peer, alphabet: &[Letter], expected: &dyn Fn(usize) -> Outcome) -> u32 {
    let mut words = 0;
    let mut open = vec![(0_usize, 0_usize, node.book.record(&peer.id()))];
    while let Some((set, letters, record)) = open.pop() {
        words += 1;
        put_back(node, peer, record.as_ref());
        assert_eq!(outcome(node, peer), expected(set), "after a word over {set:08b}");
        if letters == LETTERS_MAX {
            continue;
        }
        for (number, letter) in alphabet.iter().enumerate() {
            put_back(node, peer, record.as_ref());
            hear(node, peer, letter, NOON);
            open.push((set | 1 << number, letters + 1, node.book.record(&peer.id())));
        }
    }
    words
}

fn statements(alphabet: &[Letter], set: usize, ours: bool) -> impl Iterator<Item = &Verified> {
    alphabet.iter().enumerate().filter(move |(number, _)| set & 1 << number != 0).filter_map(move |(_, letter)| {
        match letter {
            Letter::Ours(one) if ours => Some(one),
            Letter::Theirs(one) if !ours => Some(one),
            _ => None,
        }
    })
}

fn is(kind: Kind) -> impl Fn(&&Verified) -> bool {
    move |one: &&Verified| one.terms().kind == kind
}

const WORDS: u32 = 1 + 8 + 64 + 512 + 4_096 + 32_768;

#[test]
fn every_order_after_our_grant_ends_alike() {
    let (node, peer) = (Node::plain(), Peer::new(1));
    // Our own grant is older than the revokes that are proven, and newer than one of the grants.
    node.trust(&peer, UnixMillis(8));
    let granted = node.record(&peer).ours.as_ref().unwrap().digest;
    let alphabet = alphabet(&peer);
    let expected = |set: usize| {
        let revoked = winner(statements(&alphabet, set, true).filter(is(Kind::Revoke)));
        let theirs = winner(statements(&alphabet, set, false));
        let refuses =
            statements(&alphabet, set, false).any(|one| Some(one.digest()) == theirs && is(Kind::Revoke)(&one));
        let state = match (revoked, theirs) {
            (Some(_), _) => TrustState::Revoked,
            (None, None) => TrustState::Requested,
            (None, Some(_)) if refuses => TrustState::Refused,
            (None, Some(_)) => TrustState::Trusted,
        };
        (Some(revoked.unwrap_or(granted)), theirs, state)
    };
    assert_eq!(every_word(&node, &peer, &alphabet, &expected), WORDS);
}

#[test]
fn every_order_after_our_newer_revoke_changes_nothing_of_ours() {
    let (node, peer) = (Node::plain(), Peer::new(1));
    node.trust(&peer, UnixMillis(20));
    node.revoke(&peer, UnixMillis(21));
    let revoked = node.record(&peer).ours.as_ref().unwrap().digest;
    let alphabet = alphabet(&peer);
    let expected = |set: usize| (Some(revoked), winner(statements(&alphabet, set, false)), TrustState::Revoked);
    assert_eq!(every_word(&node, &peer, &alphabet, &expected), WORDS);
}

#[test]
fn every_order_while_blocked_hears_revokes_alone() {
    let (node, peer) = (Node::plain(), Peer::new(1));
    node.trust(&peer, UnixMillis(8));
    node.hears(&peer, &peer.grants(1), NOON);
    node.block(&peer, true, NOON);
    let before = node.record(&peer);
    let alphabet = alphabet(&peer);
    let expected = |set: usize| {
        let ours = winner(statements(&alphabet, set, true).filter(is(Kind::Revoke)));
        let theirs = winner(statements(&alphabet, set, false).filter(is(Kind::Revoke)));
        let held = |edge: &Option<handfast_trust::Edge>| edge.as_ref().map(|edge| edge.digest);
        (ours.or(held(&before.ours)), theirs.or(held(&before.theirs)), TrustState::Blocked)
    };
    assert_eq!(every_word(&node, &peer, &alphabet, &expected), WORDS);
}

#[test]
fn every_order_of_a_strangers_grants_ends_alike() {
    let (node, peer) = (Node::plain(), Peer::new(1));
    // Without the stranger's own revoke, which leaves nothing behind that a later replay could be compared with.
    let alphabet: Vec<Letter> = alphabet(&peer)
        .into_iter()
        .filter(|letter| !matches!(letter, Letter::Theirs(one) if one.terms().kind == Kind::Revoke))
        .collect();
    let expected = |set: usize| {
        let ours = winner(statements(&alphabet, set, true).filter(is(Kind::Revoke)));
        let theirs = winner(statements(&alphabet, set, false));
        let state = match (ours, theirs) {
            (Some(_), _) => TrustState::Revoked,
            (None, Some(_)) => TrustState::Pending,
            (None, None) => TrustState::Unknown,
        };
        (ours, theirs, state)
    };
    every_word(&node, &peer, &alphabet, &expected);
}

#[test]
fn a_strangers_statements_in_any_order_never_lead_past_pending() {
    let (node, peer) = (Node::plain(), Peer::new(1));
    let alphabet: Vec<Letter> =
        alphabet(&peer).into_iter().filter(|letter| matches!(letter, Letter::Theirs(_))).collect();
    let mut open = vec![(0, None)];
    while let Some((letters, record)) = open.pop() {
        for letter in alphabet.iter().filter(|_| letters < LETTERS_MAX) {
            put_back(&node, &peer, record.as_ref());
            hear(&node, &peer, letter, NOON);
            let state = node.state(&peer, NOON);
            assert!(matches!(state, TrustState::Unknown | TrustState::Pending), "{state}");
            // What no longer counts is not kept.
            assert_eq!(node.knows(&peer), state == TrustState::Pending);
            open.push((letters + 1, node.book.record(&peer.id())));
        }
    }
}

/// The operator decides between any two statements: the decision stands, whatever else arrives before and after.
#[test]
fn an_operators_decision_in_between_decides_in_every_order() {
    let (node, peer) = (Node::plain(), Peer::new(1));
    node.trust(&peer, UnixMillis(8));
    let begin = node.book.record(&peer.id());
    let alphabet = alphabet(&peer);
    for grants in [true, false] {
        for word in words(alphabet.len(), 3) {
            for place in 0..=word.len() {
                put_back(&node, &peer, begin.as_ref());
                let (before, after) = word.split_at(place);
                before.iter().for_each(|number| hear(&node, &peer, &alphabet[*number], NOON));
                if grants {
                    // Another note: a grant that stands is a new statement too.
                    node.book.trust(peer.id(), &Grant { note: note("again"), ..Grant::default() }, NOON).unwrap();
                } else {
                    node.book.revoke(peer.id(), &note("enough"), handfast_trust::Cause::Revoked, NOON).unwrap();
                }
                after.iter().for_each(|number| hear(&node, &peer, &alphabet[*number], NOON));
                let ours = node.record(&peer).ours.clone().unwrap();
                assert_eq!((ours.is_revoke(), ours.terms.epoch), (!grants, NOON.0), "{word:?} at {place}");
                let set = word.iter().fold(0, |set, number| set | 1 << number);
                let theirs = winner(statements(&alphabet, set, false));
                assert_eq!(node.record(&peer).theirs.as_ref().map(|edge| edge.digest), theirs);
            }
        }
    }
}

/// All words of up to so many letters.
fn words(letters: usize, length: usize) -> Vec<Vec<usize>> {
    let mut all: Vec<Vec<usize>> = vec![Vec::new()];
    let mut from = 0;
    for _ in 0..length {
        let end = all.len();
        for word in from..end {
            for letter in 0..letters {
                all.push([all[word].as_slice(), &[letter]].concat());
            }
        }
        from = end;
    }
    all
}

//! Merging statements of one edge is a join: the outcome depends on which statements arrived, and on nothing else.
//!
//! Exhaustive: every word of up to seven letters over eight statements, which holds every permutation of every set of
//! up to six of them, with duplicates in every place.
#![allow(clippy::unwrap_used, reason = "a test ends where a value is not what it must be")]

use handfast_protocol::{Kind, Note, Rank, SecretKey, Statement, Terms, UnixMillis, Verified};

/// What a table does with an arriving statement.
fn merge(stored: Option<Rank>, arriving: Rank) -> Option<Rank> {
    stored.max(Some(arriving))
}

fn signed(kind: Kind, epoch: u64, note: &str) -> Verified {
    let (issuer, subject) = (SecretKey::from_seed(&[1; 32]), SecretKey::from_seed(&[2; 32]).peer_id());
    let note = Note::new(note).unwrap();
    let terms = Terms { kind, epoch, issued_at: UnixMillis(9), expires_at: None, scope: None, network: None, note };
    Statement { issuer: issuer.peer_id(), subject, terms }.sign(&issuer).unwrap()
}

/// Two epochs, both kinds, and two different statements for each: every equality and every equivocation there is.
fn statements() -> Vec<Verified> {
    let mut out = Vec::new();
    for epoch in [4, 5] {
        for kind in [Kind::Grant, Kind::Revoke] {
            out.extend(["one", "other"].map(|note| signed(kind, epoch, note)));
        }
    }
    out
}

/// Which of the statements in `set` (bit i: statement i) must win, by the words of the design and not by `Ord`.
fn winner(all: &[Verified], set: usize) -> Option<Rank> {
    let mut left: Vec<&Verified> =
        all.iter().enumerate().filter(|(i, _)| set & (1 << i) != 0).map(|(_, v)| v).collect();
    let epoch = left.iter().map(|v| v.terms().epoch).max()?;
    left.retain(|v| v.terms().epoch == epoch);
    if left.iter().any(|v| v.terms().kind == Kind::Revoke) {
        left.retain(|v| v.terms().kind == Kind::Revoke);
    }
    left.sort_by_key(|v| data_encoding::HEXLOWER.encode(&v.digest().0));
    left.last().map(|v| v.rank())
}

#[test]
fn every_order_and_repetition_of_every_set_gives_one_result() {
    const LETTERS_MAX: u32 = 7;
    let all = statements();
    let ranks: Vec<Rank> = all.iter().map(Verified::rank).collect();
    let winners: Vec<Option<Rank>> = (0..1 << all.len()).map(|set| winner(&all, set)).collect();

    let mut words = 0u32;
    let mut open = vec![(0usize, None, 0u32)];
    while let Some((set, stored, letters)) = open.pop() {
        words += 1;
        assert_eq!(stored, winners[set], "after a word over the set {set:08b}");
        if letters < LETTERS_MAX {
            open.extend(ranks.iter().enumerate().map(|(i, r)| (set | 1 << i, merge(stored, *r), letters + 1)));
        }
    }
    assert_eq!(words, (0..=LETTERS_MAX).map(|n| 8u32.pow(n)).sum::<u32>());
}

#[test]
fn merging_is_commutative_associative_and_idempotent() {
    let mut states: Vec<Option<Rank>> = statements().iter().map(|v| Some(v.rank())).collect();
    states.push(None);
    let join = |a: Option<Rank>, b: Option<Rank>| b.map_or(a, |b| merge(a, b));
    for a in &states {
        assert_eq!(join(*a, *a), *a);
        for b in &states {
            assert_eq!(join(*a, *b), join(*b, *a));
            for c in &states {
                assert_eq!(join(join(*a, *b), *c), join(*a, join(*b, *c)));
            }
        }
    }
}

#[test]
fn a_revoke_outranks_every_grant_of_its_epoch_and_no_grant_of_a_later_one() {
    let check = |winner: (Kind, u64), loser: (Kind, u64)| {
        for (a, b) in [("one", "other"), ("other", "one"), ("same", "same")] {
            let (winner, loser) = (signed(winner.0, winner.1, a).rank(), signed(loser.0, loser.1, b).rank());
            assert!(winner > loser, "{winner:?} over {loser:?}");
            assert!(!winner.is_equivocation(&loser));
        }
    };
    check((Kind::Revoke, 5), (Kind::Grant, 5));
    check((Kind::Grant, 5), (Kind::Revoke, 4));
    check((Kind::Revoke, 5), (Kind::Revoke, 4));
    check((Kind::Grant, u64::MAX), (Kind::Revoke, u64::MAX - 1));
    check((Kind::Revoke, u64::MAX), (Kind::Grant, u64::MAX));
}

#[test]
fn equivocation_is_two_statements_under_one_number_and_kind() {
    let all = statements();
    for (i, a) in all.iter().enumerate() {
        for (j, b) in all.iter().enumerate() {
            // The pool lists the two of one epoch and kind side by side.
            let expected = i != j && i / 2 == j / 2;
            assert_eq!(a.rank().is_equivocation(&b.rank()), expected, "{:?} and {:?}", a.rank(), b.rank());
        }
    }
}

//! The table of passes against a map, and beside readers.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;

use super::*;

fn peer(number: u64) -> PeerId {
    let mut bytes = [0x33; 32];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    PeerId::from_stored(bytes)
}

fn open(passes: &Passes, number: u64, since: u64, until: u64) {
    let pass = passes.enter(&peer(number)).unwrap();
    pass.begin_change();
    pass.open(Open { since: Revision(since), until, bounded: until.is_multiple_of(2) });
}

#[test]
fn buckets_are_split_in_their_order() {
    let of = |hash, buckets| bucket_of(hash, buckets);
    assert_eq!([of(7, 2), of(7, 4), of(7, 7), of(7, 8)], [1, 3, 3, 7]);
    for buckets in 2..200 {
        for hash in 0..500 {
            let (before, after) = (of(hash, buckets), of(hash, buckets + 1));
            let old = buckets - (1 << buckets.ilog2());
            assert!(after < buckets + 1 && (after == before || (before == old && after == buckets)));
        }
    }
}

/// Against a map, with passes that come, go, open and close.
#[test]
fn every_pass_is_found_and_no_other() {
    let (passes, mut model) = (Passes::default(), BTreeMap::new());
    let mut state = 1_u64;
    for since in 1..60_000_u64 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let number = (state >> 33) % (1 + since / 8);
        if state >> 62 == 0 {
            passes.remove(&peer(number));
            model.remove(&number);
        } else if state >> 62 == 1 && model.contains_key(&number) {
            passes.find(&peer(number)).unwrap().close();
            model.insert(number, Err(Shut::Closed));
        } else {
            let until = state >> 20;
            open(&passes, number, since, until);
            let bounded = until.is_multiple_of(2);
            model.insert(number, Ok(Open { since: Revision(since), until, bounded }));
        }
        assert_eq!(passes.look(&peer(number)), model.get(&number).copied());
        if since % 64 == 0 {
            passes.restock();
        }
    }
    assert!((0..10_000).all(|number| passes.look(&peer(number)) == model.get(&number).copied()));
    assert_eq!(passes.counts.len.load(Ordering::Relaxed) as usize, model.len());
    assert!(passes.counts.used.load(Ordering::Relaxed) < 7_500, "what is taken out is used again");
}

#[test]
fn a_table_that_expects_many_takes_them() {
    let passes = Passes::default();
    passes.expect(5_000);
    (0..6_000).for_each(|number| open(&passes, number, number, 1));
    assert!((0..6_000).all(|number| passes.look(&peer(number)).unwrap().unwrap().since == Revision(number)));
    assert_eq!(passes.look(&peer(6_000)), None);
}

/// Readers beside a writer that lets passes come and go around theirs: what is there all the while is always found, an answer
/// is that of the key, and a pass whose closing has returned is closed.
#[test]
fn readers_see_their_own_pass_whatever_goes_on_around_it() {
    const STAYS: u64 = 1_000_000;
    let (passes, over, closed_at) = (Passes::default(), AtomicBool::new(false), AtomicU64::new(0));
    open(&passes, STAYS, 0, STAYS);
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let mut looks = 0_u64;
                    while !over.load(Ordering::Relaxed) {
                        let stays = passes.look(&peer(STAYS)).unwrap().unwrap();
                        assert_eq!((stays.since, stays.until), (Revision(0), STAYS));
                        let number = looks % 64;
                        let closed = closed_at.load(Ordering::Acquire);
                        if let Some(Ok(found)) = passes.look(&peer(number)) {
                            assert_eq!((found.until, found.since.0 % 64), (number, number));
                            assert!(found.since.0 > closed || found.since.0 % 64 != closed % 64);
                        }
                        looks += 1;
                    }
                    looks
                })
            })
            .collect();
        for round in 1..3_000 {
            for number in 0..64 {
                let since = round * 64 + number;
                open(&passes, number, since, number);
                if round % 3 == 0 {
                    passes.find(&peer(number)).unwrap().close();
                    closed_at.store(since, Ordering::Release);
                }
                // Neighbours that make the table grow, and that go again.
                passes.enter(&peer(round * 64 + number)).unwrap();
                if round % 2 == 0 {
                    passes.remove(&peer(number));
                    passes.remove(&peer((round - 1) * 64 + number));
                }
            }
        }
        over.store(true, Ordering::Relaxed);
        assert!(readers.into_iter().all(|reader| reader.join().unwrap() > 0));
    });
}

//! Fleets on a virtual clock: networks founded, joined, left, expelled from, while nodes lose power, clocks jump and the
//! network falls apart.
//!
//! Production code runs: book, networks, drainer and record files on the simulated disk, and the machines of exchange
//! and join; only what moves bytes between them is the suite's. A history has a safety phase, in which everything goes
//! wrong and what must never happen is looked for after every step, and a liveness phase, in which nothing goes wrong
//! any more and everything must converge. Mistakes planted as type parameters must be caught.
//!
//! One seed is one history. `HANDFAST_SIM_SEEDS=n` lives n of them, `HANDFAST_SIM_SEED=s` lives one.
#![allow(clippy::unwrap_used, reason = "a suite stops at what it does not expect")]
#![allow(clippy::print_stdout, reason = "what was lived through is part of the result")]

mod check;
mod history;
mod node;
mod plants;
mod spread;
mod talk;

use std::panic::catch_unwind;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use self::history::{Lived, Options, live};
use self::plants::{
    AnswersBeforeTheDisk, CutsNobody, DropsNotices, ForgetsAtStart, KeepsItsFirstDecision, NeverReconciles, Plant,
    Sound, SyncsNothing,
};

/// Histories of an ordinary run.
const HISTORIES: u64 = 10_000;
/// Histories in which a planted mistake must have been caught.
const PATIENCE: u64 = 3_000;

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

/// Lives the histories of these seeds on every core; the first that goes wrong is the result.
fn all<P: Plant>(seeds: std::ops::Range<u64>) -> Result<Lived, String> {
    let next = AtomicU64::new(seeds.start);
    let wrong: Mutex<Option<(u64, String)>> = Mutex::new(None);
    let total = Mutex::new(Lived::default());
    let threads = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut lived = Lived::default();
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end || wrong.lock().unwrap().as_ref().is_some_and(|(first, _)| *first < seed) {
                        break;
                    }
                    let outcome = catch_unwind(|| live::<P>(seed, Options::of(seed)));
                    let outcome = outcome.unwrap_or_else(|_| Err("a panic".to_owned()));
                    match outcome {
                        Ok(one) => lived.add(&one),
                        Err(what) => {
                            let mut wrong = wrong.lock().unwrap();
                            if wrong.as_ref().is_none_or(|(first, _)| seed < *first) {
                                *wrong = Some((seed, what));
                            }
                        }
                    }
                }
                total.lock().unwrap().add(&lived);
            });
        }
    });
    match wrong.into_inner().unwrap() {
        Some((seed, what)) => Err(format!("seed {seed}: {what}\n{:?}", Options::of(seed))),
        None => Ok(total.into_inner().unwrap()),
    }
}

#[test]
fn every_history_is_safe_and_ends_well() {
    let seeds = match from_environment("HANDFAST_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 1..from_environment("HANDFAST_SIM_SEEDS").unwrap_or(HISTORIES) + 1,
    };
    println!("seeds {seeds:?}; the options of the first: {:?}", Options::of(seeds.start));
    match all::<Sound>(seeds) {
        Ok(lived) => {
            println!("{lived:?}");
            let rare = [lived.joins, lived.expulsions, lived.cuts, lived.jumps, lived.partitions, lived.refused];
            assert!(lived.histories < 1_000 || rare.iter().all(|count| *count > 100), "something never happened");
        }
        Err(what) => panic!("{what}"),
    }
}

/// DET: the same seed is the same history.
#[test]
fn a_history_can_be_lived_again() {
    for seed in 1..20 {
        let once = || live::<Sound>(seed, Options::of(seed)).map(|lived| lived.trace);
        assert_eq!(once(), once(), "seed {seed}");
    }
}

fn caught<P: Plant>(expected: &[&str]) {
    let Err(what) = all::<P>(1..PATIENCE) else { panic!("a planted mistake went unnoticed") };
    println!("{}: {what}", std::any::type_name::<P>());
    assert!(expected.iter().any(|words| what.contains(words)), "caught for another reason: {what}");
}

#[test]
fn answering_before_the_disk_is_caught() {
    caught::<AnswersBeforeTheDisk>(&["another certificate", "more keys than uses", "forgotten", "both members"]);
}

#[test]
fn a_disk_that_syncs_nothing_is_caught() {
    caught::<SyncsNothing>(&["forgotten", "another certificate", "more keys than uses", "does not open"]);
}

#[test]
fn a_decision_that_is_not_taken_afresh_is_caught() {
    caught::<KeepsItsFirstDecision>(&["granted to somebody", "certified somebody"]);
}

#[test]
fn notices_that_are_not_kept_are_caught() {
    caught::<DropsNotices>(&["expulsions differ"]);
}

#[test]
fn a_change_that_is_not_written_down_is_caught() {
    caught::<NeverReconciles>(&["was not told"]);
}

#[test]
fn a_session_that_is_not_cut_is_caught() {
    caught::<CutsNobody>(&["a session goes on"]);
}

#[test]
fn a_start_that_does_not_look_back_is_caught() {
    caught::<ForgetsAtStart>(&["was not told"]);
}

//! Every crash point of the record core, and every subset of what was not synced: an acknowledged change is there, and
//! what is found is a state that memory held (ACK, ATOM).
//!
//! `HANDFAST_CRASH_ROUNDS=n` explores n rounds, each with other sizes and draws; the default is one.

#![allow(clippy::unwrap_used, reason = "a suite stops at what it does not expect")]
#![allow(clippy::print_stdout, reason = "what was explored is part of the result")]

mod core_support;

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use core_support::{Broken, Run, Seen, explore};
use handfast_trust::sim::{
    AckBeforeSync, Fault, FaultPlan, InPlaceOverwrite, NoDirectorySync, NoFileSync, Rig, SMALL, SimDisk, Subsets,
    SyncRepeated,
};
use handfast_trust::{DamageFault, DiskErrorKind, DiskOp, GATHER_DELAY, Medium, StoreError, Tuning, remove_leftovers};

/// What a run does; `n` varies its sizes.
type Scenario<M> = fn(&mut Run<M>, n: u64);

const fn scenarios<M: Medium>() -> [(&'static str, Scenario<M>); 9] {
    [
        ("appends", appends),
        ("large frames", large_frames),
        ("compaction", compaction),
        ("failed sync", failed_sync),
        ("failed write", failed_write),
        ("failed write and truncate", failed_undo),
        ("name in doubt", name_in_doubt),
        ("batch longer than a frame", long_batch),
        ("stop", stop),
    ]
}

fn size(n: u64, number: u64) -> usize {
    usize::try_from((number * 131 + n * 97) % 300).unwrap()
}

fn appends<M: Medium>(run: &mut Run<M>, n: u64) {
    for number in 0..12 {
        run.put(number % 5, size(n, number));
        if number % 3 == 0 {
            run.put(number % 4, 10);
            run.remove(number % 3);
        }
        run.step();
        run.rig.clock.advance(Duration::from_millis(300));
    }
}

fn large_frames<M: Medium>(run: &mut Run<M>, n: u64) {
    for number in 0..3 {
        run.put(number, 1_500 + size(n, number));
        run.put(number + 1, 900);
        run.step();
    }
}

fn compaction<M: Medium>(run: &mut Run<M>, n: u64) {
    for number in 0..40 {
        run.put(number % 3, 60 + size(n, number) / 4);
        run.step();
        if number % 7 == 0 {
            run.remove(number % 3);
        }
    }
    assert!(run.rig.drainer.health().snapshot().checkpoints > 0, "nothing was compacted");
}

fn fail<M: Medium>(run: &Run<M>, op: DiskOp, fault: Fault, count: u64) {
    // From the next operation of this sort on.
    run.disk.set_faults(Some(FaultPlan { from: run.disk.operations(), count, fault, only: Some(op) }));
}

fn mend<M: Medium>(run: &mut Run<M>, n: u64) {
    run.disk.set_faults(None);
    for number in 0..4 {
        run.put(number, size(n, number));
        run.rig.settle(Duration::from_secs(5));
    }
}

fn failed_sync<M: Medium>(run: &mut Run<M>, n: u64) {
    for count in [1, 3, u64::MAX] {
        run.put(1, size(n, 1));
        run.rig.settle(Duration::from_secs(1));
        fail(run, DiskOp::Sync, Fault::Error(DiskErrorKind::Io), count);
        run.put(1, size(n, 2));
        run.put(2, 300);
        run.step();
        run.put(3, size(n, 3));
        for _ in 0..3 {
            run.rig.clock.advance(Duration::from_secs(4));
            run.step();
            run.put(4, size(n, 4));
        }
        mend(run, n);
    }
}

fn failed_write<M: Medium>(run: &mut Run<M>, n: u64) {
    run.put(1, size(n, 1));
    run.step();
    fail(run, DiskOp::Write, Fault::Error(DiskErrorKind::NoSpace), u64::MAX);
    run.put(2, 700);
    run.step();
    run.put(3, size(n, 3));
    run.rig.clock.advance(Duration::from_secs(4));
    run.step();
    mend(run, n);
}

fn failed_undo<M: Medium>(run: &mut Run<M>, n: u64) {
    run.put(1, size(n, 1));
    run.step();
    run.disk.set_faults(Some(FaultPlan {
        from: run.disk.operations(),
        count: 6,
        fault: Fault::Error(DiskErrorKind::Io),
        only: None,
    }));
    run.put(2, 700);
    run.step();
    run.put(1, size(n, 3));
    run.rig.clock.advance(Duration::from_secs(4));
    run.step();
    mend(run, n);
}

fn name_in_doubt<M: Medium>(run: &mut Run<M>, n: u64) {
    let faults = [
        (DiskOp::SyncDirectory, Fault::Error(DiskErrorKind::Io)),
        (DiskOp::Rename, Fault::ErrorAfter(DiskErrorKind::Io)),
        (DiskOp::SyncDirectory, Fault::ErrorAfter(DiskErrorKind::Io)),
    ];
    for (op, fault) in faults {
        fail(run, op, fault, u64::MAX);
        for number in 0..30 {
            run.put(number % 2, 80 + size(n, number) / 8);
            run.step();
        }
        mend(run, n);
    }
}

fn long_batch<M: Medium>(run: &mut Run<M>, n: u64) {
    for number in 0..9 {
        run.put(number, 200 + size(n, number));
    }
    run.rig.settle(Duration::from_secs(2));
    run.put(1, size(n, 1));
    run.rig.settle(Duration::from_secs(2));
}

fn stop<M: Medium>(run: &mut Run<M>, n: u64) {
    for number in 0..4 {
        run.put(number, size(n, number));
        run.step();
    }
    run.put(9, size(n, 9));
    run.rig.stop();
}

fn run_one<M: Medium>(
    wrap: impl Fn(SimDisk) -> M,
    (name, scenario): (&str, Scenario<M>),
    (n, sector): (u64, u64),
) -> Result<Seen, Broken> {
    let disk = SimDisk::of(Default::default(), sector);
    let batch_bytes_max = if name == "batch longer than a frame" { 900 } else { SMALL.batch_bytes_max };
    // With and without room allocated ahead.
    let allocation_bytes = if n % 2 == 0 { SMALL.allocation_bytes } else { 0 };
    // Whatever is changed gathers first, or is written at once.
    let gather_delay = if (n % 2 == 0) == (sector == 512) { Duration::ZERO } else { GATHER_DELAY };
    let tuning = Tuning { batch_bytes_max, allocation_bytes, gather_delay, ..SMALL };
    let mut run = Run::create(&disk, wrap(disk.clone()), tuning);
    scenario(&mut run, n);
    explore(&run.recorder.take(), &run.history, n)
}

fn rounds() -> u64 {
    std::env::var("HANDFAST_CRASH_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(1)
}

#[test]
fn a_power_cut_takes_nothing_that_was_acknowledged() {
    let cases: Vec<_> = (0..rounds() * 2)
        .flat_map(|n| [512, 4_096].map(|sector| (n, sector)))
        .flat_map(|variant| scenarios::<SimDisk>().map(|scenario| (scenario, variant)))
        .collect();
    let next = std::sync::atomic::AtomicUsize::new(0);
    let worker = || {
        let mut seen = Seen::default();
        while let Some((scenario, variant)) = cases.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) {
            match run_one(|disk| disk, *scenario, *variant) {
                Ok(more) => seen.add(more),
                Err(broken) => panic!("{} {variant:?}: {broken:?}", scenario.0),
            }
        }
        seen
    };
    let mut seen = Seen::default();
    std::thread::scope(|scope| {
        for thread in [scope.spawn(worker), scope.spawn(worker)] {
            seen.add(thread.join().unwrap());
        }
    });
    println!(
        "{} crash points, {} crash states, {} different images; {} points too wide for all subsets were sampled",
        seen.points, seen.states, seen.images, seen.sampled_points
    );
    assert!(seen.states >= 1_000_000, "{seen:?}");
}

#[test]
fn a_power_cut_during_recovery_takes_nothing_either() {
    let mut seen = Seen::default();
    let mut cuts = 0;
    for scenario in [appends, failed_sync, failed_undo] {
        let disk = SimDisk::default();
        let mut run = Run::create(&disk, disk.clone(), SMALL);
        scenario(&mut run, 1);
        let mut images = HashSet::new();
        for (number, point) in run.recorder.take().into_iter().enumerate() {
            for survives in Subsets::new(point.crash.uncertain(), number as u64).step_by(7).take(24) {
                let image = point.crash.image(|effect| survives[effect]);
                if !images.insert(image.clone()) {
                    continue;
                }
                cuts += 1;
                let mut second = Run::recover(image, &point, &run.history);
                second.put(77, 120);
                second.step();
                second.put(78, 600);
                second.rig.settle(Duration::from_secs(2));
                match explore(&second.recorder.take(), &second.history, 1) {
                    Ok(more) => seen.add(more),
                    Err(broken) => panic!("after cut {cuts} at point {number}: {broken:?}"),
                }
            }
        }
    }
    println!("{cuts} first cuts; after each: {seen:?}");
    assert!(cuts > 100);
}

#[test]
fn a_power_cut_while_a_store_is_made_leaves_none_or_an_empty_one() {
    let disk = SimDisk::default();
    let points = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&points);
    disk.observe(move |crash| seen.lock().unwrap().push(crash.clone()));
    let rig = Rig::create(disk, 1, SMALL).unwrap();
    assert!(rig.records().is_empty());
    let points = points.lock().unwrap();
    let last = points.len() - 1;
    for (number, point) in points.iter().enumerate() {
        for survives in Subsets::new(point.uncertain(), 1) {
            let image = SimDisk::of(point.image(|effect| survives[effect]), 512);
            match Rig::open(image.clone(), 2, SMALL) {
                Ok(rig) => assert!(rig.records().is_empty()),
                Err(StoreError::Damaged { fault: DamageFault::Missing, .. }) if number < last => {}
                Err(error) => panic!("at point {number}: {error}"),
            }
            // Whatever is left under a temporary name does not block the next try.
            remove_leftovers(&mut image.clone()).unwrap();
            assert!(image.names().iter().all(|name| name == "floor" || name == "trust.hf"));
        }
    }
}

/// The scenarios that notice the mistake.
fn noticed_by<M: Medium>(wrap: impl Fn(SimDisk) -> M + Copy) -> Vec<&'static str> {
    let caught = |scenario: &(&'static str, Scenario<M>)| run_one(wrap, *scenario, (0, 512)).is_err();
    scenarios::<M>().iter().filter(|scenario| caught(scenario)).map(|(name, _)| *name).collect()
}

#[test]
fn planted_mistakes_are_noticed() {
    let noticed = [
        ("no sync of the directory", noticed_by(NoDirectorySync)),
        ("no sync of files", noticed_by(NoFileSync)),
        ("in-place overwrite", noticed_by(InPlaceOverwrite::new)),
        ("sync repeated after a failure", noticed_by(SyncRepeated)),
        ("acknowledged before the sync", noticed_by(AckBeforeSync)),
    ];
    for (mistake, scenarios) in &noticed {
        println!("{mistake}: noticed by {scenarios:?}");
        assert!(!scenarios.is_empty(), "{mistake} is not noticed");
    }
    assert!(noticed_by(|disk| disk).is_empty(), "the right way is taken for a mistake");
}

//! Many threads on the real types: the drainer's thread, a real directory, waiters that give up, stop in the middle.
//!
//! What a thread knows to be durable is found after the end; two stores share one drainer.

#![allow(clippy::unwrap_used, reason = "a suite stops at what it does not expect")]

use std::collections::HashMap;
use std::fs::Permissions;
use std::future::Future as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use handfast::clock::MonotonicClock;
use handfast_trust::sim::{Blob, RIG_OWNER, RigBlob};
use handfast_trust::{
    Clock, Drainer, DrainerHandle, DrainerThread, Floor, RealDir, Revision, Site, Store, Tuning, Urgency, create, open,
};

type Sessions = Blob<3>;

const THREADS: u64 = 6;
const KEYS: u64 = 50;

/// Numbers that are the same in every run.
struct Draw(u64);

impl Draw {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

struct Running {
    trust: Store<RigBlob>,
    sessions: Store<Sessions>,
    drainer: DrainerHandle,
}

fn site(clock: &Arc<dyn Clock>) -> Site {
    let tuning = Tuning { checkpoint_bytes_min: 20_000, batch_bytes_max: 2_000, ..Tuning::default() };
    Site::new(RIG_OWNER, [1; 32], clock.clone()).with_tuning(tuning)
}

fn start(directory: &Path, fresh: bool) -> Running {
    // Time passes, so that what waits for a moment comes.
    let clock: Arc<dyn Clock> = Arc::new(MonotonicClock::start());
    let site = site(&clock);
    let mut medium = RealDir::open(directory).unwrap();
    if fresh {
        Floor::default().write(&mut medium, site.owner()).unwrap();
        drop(create::<RigBlob, _>(&mut medium, &site).unwrap());
        drop(create::<Sessions, _>(&mut medium, &site).unwrap());
    }
    let floor = Floor::read(&mut medium, site.owner()).unwrap();
    let trust = open::<RigBlob, _>(&mut medium, &site, &floor).unwrap();
    let sessions = open::<Sessions, _>(&mut medium, &site, &floor).unwrap();
    let mut drainer = Drainer::new(medium, &site, floor);
    drainer.add(trust.log);
    drainer.add(sessions.log);
    Running { trust: trust.store, sessions: sessions.store, drainer: DrainerThread::spawn(drainer, clock).unwrap() }
}

/// One thread's life: it owns some keys, and remembers the last value of each that it knows to be durable.
fn live(running: &Running, thread: u64, round: u64) -> HashMap<u64, (Vec<u8>, Revision)> {
    let mut draw = Draw(round * 1_000 + thread + 1);
    let mut durable = HashMap::new();
    for number in 0..300 {
        let key = thread * KEYS + draw.below(KEYS);
        let value = vec![u8::try_from(draw.below(256)).unwrap(); usize::try_from(draw.below(200)).unwrap()];
        let ((), revision) = running.trust.write(|table| table.put(key, Blob(value.clone()), Urgency::Critical));
        running.sessions.write(|table| table.put(number, Blob(vec![1]), Urgency::Critical));
        // What was known of this key is outdated.
        durable.remove(&key);
        match draw.below(4) {
            0 => {
                running.trust.durable().reached_blocking(revision, Duration::from_secs(120)).unwrap();
                durable.insert(key, (value, revision));
            }
            1 => {
                // A waiter that gives up takes nothing from the others.
                let mut waiter = pin!(running.trust.durable().reached(revision));
                let _ = waiter.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            }
            _ => {}
        }
    }
    durable
}

#[test]
fn what_a_thread_knows_to_be_durable_is_there_after_the_end() {
    let directory = tempfile::Builder::new().permissions(Permissions::from_mode(0o700)).tempdir().unwrap();
    for round in 0..6 {
        let running = start(directory.path(), round == 0);
        let known: Vec<_> = std::thread::scope(|scope| {
            let running = &running;
            let threads: Vec<_> =
                (0..THREADS).map(|thread| scope.spawn(move || live(running, thread, round))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(running.trust.durable().waiters(), 0);
        let last = running.trust.revision();
        let mut memory: Vec<_> = running.trust.walk().flatten().map(|(key, record)| (key, record.0.clone())).collect();
        memory.sort();
        assert_eq!(running.drainer.stop(), handfast_trust::FinalReport::default());

        let again = start(directory.path(), false);
        assert_eq!(again.trust.revision(), last);
        let mut disk: Vec<_> = again.trust.walk().flatten().map(|(key, record)| (key, record.0.clone())).collect();
        disk.sort();
        assert_eq!(disk, memory);
        for (key, (value, revision)) in known.into_iter().flatten() {
            let found = again.trust.read(|table| table.get(&key).map(|record| record.0.clone()));
            assert_eq!(found, Some(value), "{key} at {revision}");
        }
    }
}

#[test]
fn what_nobody_waits_for_is_written_in_its_time() {
    let directory = tempfile::Builder::new().permissions(Permissions::from_mode(0o700)).tempdir().unwrap();
    let running = start(directory.path(), true);
    for urgency in [Urgency::Critical, Urgency::Lazy, Urgency::Critical] {
        let ((), revision) = running.trust.write(|table| table.put(1, Blob(vec![urgency as u8; 40]), urgency));
        let clock = MonotonicClock::start();
        while running.trust.durable().current() < revision {
            assert!(clock.now().0 < Duration::from_secs(120), "{urgency:?}: not written");
            std::thread::yield_now();
        }
    }
    assert_eq!(running.drainer.stop(), handfast_trust::FinalReport::default());
}

#[test]
fn a_stop_in_the_middle_tells_everybody_the_truth() {
    for round in 0..20 {
        let directory = tempfile::Builder::new().permissions(Permissions::from_mode(0o700)).tempdir().unwrap();
        let running = start(directory.path(), true);
        let (trust, drainer) = (running.trust.clone(), running.drainer);
        let told: Vec<_> = std::thread::scope(|scope| {
            let changers: Vec<_> = (0..THREADS)
                .map(|thread| {
                    let trust = &trust;
                    scope.spawn(move || {
                        let mut draw = Draw(round * 77 + thread + 1);
                        let mut told = Revision::ZERO;
                        for _ in 0..20 {
                            let key = draw.below(100);
                            let put = |table: &mut handfast_trust::Table<RigBlob>| {
                                table.put(key, Blob(vec![1; 50]), Urgency::Critical);
                            };
                            let ((), revision) = trust.write(put);
                            if trust.durable().reached_blocking(revision, Duration::from_secs(120)).is_ok() {
                                told = revision;
                            }
                        }
                        told
                    })
                })
                .collect();
            // Somewhere in between: as soon as something is durable.
            trust.durable().reached_blocking(Revision(round + 1), Duration::from_secs(120)).unwrap();
            let _ = drainer.stop();
            changers.into_iter().map(|changer| changer.join().unwrap()).collect()
        });
        let again = start(directory.path(), false);
        let told = told.into_iter().max().unwrap();
        assert!(again.trust.revision() >= told, "told {told}, found {}", again.trust.revision());
    }
}

//! Random lives of a store: changes, steps, faults that come and go, compactions, power cuts, restarts; and at the end
//! a phase in which the disk works, and everything must have caught up.
//!
//! One seed is one life. `HANDFAST_SIM_SEEDS=n` lives n of them, `HANDFAST_SIM_SEED=s` lives one.

#![allow(clippy::unwrap_used, reason = "a suite stops at what it does not expect")]
#![allow(clippy::print_stdout, reason = "what was lived through is part of the result")]

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use handfast_tests::Draw;
use handfast_trust::sim::{Blob, Fault, FaultPlan, Rig, SMALL, SimDisk};
use handfast_trust::{
    Clock as _, DiskErrorKind, DiskOp, GATHER_DELAY, Next, Revision, Tuning, Urgency, remove_leftovers,
};

type Records = BTreeMap<u64, Vec<u8>>;

#[derive(Default, Debug)]
struct Lived {
    changes: u64,
    cuts: u64,
    stops: u64,
    faults: u64,
    checkpoints: u64,
}

struct Life {
    seed: u64,
    draw: Draw,
    tuning: Tuning,
    disk: SimDisk,
    rig: Rig<SimDisk>,
    model: Records,
    history: HashMap<Revision, Records>,
    /// States of earlier runs which nothing has confirmed, and nothing has overruled yet: a restart without a power cut
    /// may not see them, and a later cut may bring them back. Confirming anything newer must rule them out.
    earlier: Vec<(Revision, Records)>,
    acknowledged: Revision,
    /// As it was last seen in this run; it may be less than what an earlier run had promised.
    durable: Revision,
    lived: Lived,
}

impl Life {
    fn begin(seed: u64) -> Self {
        let mut draw = Draw::new(seed);
        let tuning = Tuning {
            allocation_bytes: draw.of(&[0, 700, 4_096]),
            checkpoint_bytes_min: draw.of(&[500, 2_000, 8_000]),
            batch_bytes_max: draw.of(&[200, 1_000, 1 << 20]),
            gather_delay: draw.of(&[Duration::ZERO, GATHER_DELAY]),
            ..SMALL
        };
        let disk = SimDisk::of(BTreeMap::new(), draw.of(&[512, 4_096]));
        let rig = Rig::create(disk.clone(), 1, tuning).unwrap();
        let mut life = Self {
            seed,
            draw,
            tuning,
            disk,
            rig,
            model: Records::new(),
            history: HashMap::new(),
            earlier: Vec::new(),
            acknowledged: Revision::ZERO,
            durable: Revision::ZERO,
            lived: Lived::default(),
        };
        life.remember();
        life
    }

    fn remember(&mut self) {
        self.history.insert(self.rig.store.revision(), self.model.clone());
    }

    fn act(&mut self) {
        match self.draw.below(100) {
            0..45 => self.change(),
            45..75 => self.step(),
            75..85 => self.rig.clock.advance(Duration::from_millis(self.draw.below(3_000))),
            85..90 => self.faults(),
            90..93 => self.disk.set_faults(None),
            93..96 => self.rig.drainer.compact(),
            96..98 => self.cut(),
            _ => self.stop(),
        }
    }

    fn change(&mut self) {
        let key = if self.draw.one_in(4) { self.draw.below(400) } else { self.draw.below(12) };
        let urgency = if self.draw.one_in(5) { Urgency::Lazy } else { Urgency::Critical };
        if self.draw.one_in(3) {
            self.rig.store.write(|table| drop(table.remove(&key, urgency)));
            self.model.remove(&key);
        } else {
            let long = self.draw.one_in(8);
            let length = self.draw.below(if long { 1_500 } else { 90 });
            let value = vec![u8::try_from(self.draw.below(256)).unwrap(); usize::try_from(length).unwrap()];
            self.rig.store.write(|table| table.put(key, Blob(value.clone()), urgency));
            self.model.insert(key, value);
        }
        self.lived.changes += 1;
        self.remember();
    }

    fn step(&mut self) {
        let before = self.rig.drainer.health().snapshot().checkpoints;
        self.rig.step();
        self.lived.checkpoints += self.rig.drainer.health().snapshot().checkpoints - before;
        let durable = self.rig.store.durable().current();
        assert!(durable >= self.durable, "seed {}: the durable revision goes back", self.seed);
        assert!(durable <= self.rig.store.revision());
        if durable > self.durable {
            self.earlier.clear();
        }
        self.durable = durable;
        self.acknowledged = self.acknowledged.max(durable);
    }

    fn faults(&mut self) {
        let kind = self.draw.of(&[DiskErrorKind::Io, DiskErrorKind::NoSpace, DiskErrorKind::Interrupted]);
        let fault = self.draw.of(&[Fault::Error(kind), Fault::ErrorAfter(kind), Fault::Short]);
        let only = self.draw.of(&[
            None,
            Some(DiskOp::Write),
            Some(DiskOp::Sync),
            Some(DiskOp::Truncate),
            Some(DiskOp::Rename),
            Some(DiskOp::SyncDirectory),
            Some(DiskOp::Create),
        ]);
        let count = self.draw.of(&[1, 2, 5, u64::MAX]);
        self.disk.set_faults(Some(FaultPlan { from: self.disk.operations(), count, fault, only }));
        self.lived.faults += 1;
    }

    /// The power goes: of what was not synced anything may be left.
    fn cut(&mut self) {
        self.lived.cuts += 1;
        let bits: Vec<bool> = (0..1 << 14).map(|_| self.draw.one_in(2)).collect();
        let all = self.draw.of(&[Some(false), Some(true), None, None]);
        let image = self.disk.crash_point().image(|effect| all.unwrap_or(bits[effect % bits.len()]));
        self.disk = SimDisk::of(image, self.draw.of(&[512, 4_096]));
        self.restart("a power cut");
        // What was found is all that there is.
        self.earlier.clear();
    }

    fn stop(&mut self) {
        self.lived.stops += 1;
        self.rig.stop();
        if self.rig.drainer.report().unsaved.is_empty() {
            self.acknowledged = self.rig.store.revision();
        }
        self.disk.set_faults(None);
        self.restart("a stop");
    }

    fn restart(&mut self, why: &str) {
        let mut medium = self.disk.clone();
        remove_leftovers(&mut medium).unwrap();
        self.rig = match Rig::open(medium, 2, self.tuning) {
            Ok(rig) => rig,
            Err(error) => panic!("seed {}: after {why}: {error}", self.seed),
        };
        let found = self.rig.store.revision();
        assert!(found >= self.acknowledged, "seed {}: after {why}: {found} < {}", self.seed, self.acknowledged);
        self.model = self.records();
        let held = self.history.get(&found) == Some(&self.model)
            || self.earlier.iter().any(|(revision, records)| *revision == found && *records == self.model);
        assert!(held, "seed {}: after {why} at {found}: a state that memory never held", self.seed);
        // Revisions that were lost are used anew.
        let lost = self.history.extract_if(|revision, _| *revision > found);
        self.earlier.extend(lost);
        self.remember();
        self.durable = self.rig.store.durable().current();
        assert!(self.durable <= found);
        self.acknowledged = self.acknowledged.max(self.durable);
    }

    fn records(&self) -> Records {
        self.rig.records().into_iter().collect()
    }

    /// The disk works: everything catches up, health included.
    fn end(mut self) -> Lived {
        self.disk.set_faults(None);
        self.rig.settle(Duration::from_secs(5));
        let seed = self.seed;
        assert_eq!(self.rig.store.durable().current(), self.rig.store.revision(), "seed {seed}: not caught up");
        assert_eq!(self.rig.drainer.health().snapshot().degraded(self.rig.clock.now()), None, "seed {seed}");
        assert_eq!(self.records(), self.model, "seed {seed}");
        self.rig.settle(Duration::from_secs(60));
        assert_eq!(self.rig.step(), Next::Idle, "seed {seed}: it does not come to rest");
        self.acknowledged = self.rig.store.revision();
        self.cut();
        self.lived
    }
}

fn live(seed: u64) -> Lived {
    let mut life = Life::begin(seed);
    for _ in 0..400 {
        life.act();
    }
    life.end()
}

#[test]
fn random_lives() {
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    if let Some(seed) = number("HANDFAST_SIM_SEED") {
        println!("{:?}", live(seed));
        return;
    }
    let mut all = Lived::default();
    let seeds = number("HANDFAST_SIM_SEEDS").unwrap_or(1_000);
    for seed in 0..seeds {
        let lived = live(seed);
        all.changes += lived.changes;
        all.cuts += lived.cuts;
        all.stops += lived.stops;
        all.faults += lived.faults;
        all.checkpoints += lived.checkpoints;
    }
    println!("{seeds} lives: {all:?}");
    assert!(all.cuts > seeds && all.checkpoints > seeds);
}

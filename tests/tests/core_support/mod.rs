//! Running a store on a simulated disk, cutting the power at every point, and judging what is found afterwards.

#![allow(dead_code, reason = "each suite uses its part of it")]

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Arc, Mutex};

use handfast_trust::sim::{CrashPoint, Rig, SMALL, SimDisk, Subsets};
use handfast_trust::{Durable, GATHER_DELAY, Medium, Revision, StoreError, Tuning};

/// What the power may be cut at: what the disk holds, what had been acknowledged by the time of the next operation,
/// and how far the memory had come.
pub(crate) struct Point {
    pub(crate) crash: CrashPoint,
    pub(crate) acknowledged: Revision,
    pub(crate) newest: Revision,
}

/// Collects the crash points of a run.
#[derive(Clone, Default)]
pub(crate) struct Recorder(Arc<Mutex<Recorded>>);

#[derive(Default)]
struct Recorded {
    points: Vec<Point>,
    durable: Option<Durable>,
    /// Acknowledged before this run.
    before: Revision,
    newest: Revision,
}

impl Recorder {
    pub(crate) fn attach(&self, disk: &SimDisk) {
        let recorded = Arc::clone(&self.0);
        disk.observe(move |crash| {
            let mut recorded = recorded.lock().unwrap();
            recorded.acknowledge();
            let newest = recorded.newest;
            recorded.points.push(Point { crash: crash.clone(), acknowledged: Revision(0), newest });
        });
    }

    /// From now on the acknowledgements of this store count.
    pub(crate) fn watch(&self, durable: &Durable) {
        self.0.lock().unwrap().durable = Some(durable.clone());
    }

    pub(crate) fn changed(&self, newest: Revision) {
        self.0.lock().unwrap().newest = newest;
    }

    pub(crate) fn take(&self) -> Vec<Point> {
        let mut recorded = self.0.lock().unwrap();
        recorded.acknowledge();
        std::mem::take(&mut recorded.points)
    }
}

impl Recorded {
    /// What is acknowledged now was so while the disk was as the last point shows it.
    fn acknowledge(&mut self) {
        if let Some(point) = self.points.last_mut() {
            let durable = self.durable.as_ref().map_or(Revision::ZERO, Durable::current);
            point.acknowledged = durable.max(self.before);
        }
    }
}

/// A rig whose every state is remembered.
pub(crate) struct Run<M: Medium> {
    pub(crate) rig: Rig<M>,
    pub(crate) disk: SimDisk,
    pub(crate) recorder: Recorder,
    pub(crate) history: HashMap<Revision, u64>,
}

impl Run<SimDisk> {
    /// What a power cut has left is opened; the crash points of that are recorded.
    pub(crate) fn recover(image: BTreeMap<String, Vec<u8>>, point: &Point, history: &HashMap<Revision, u64>) -> Self {
        let disk = SimDisk::of(image, 512);
        let recorder = Recorder::default();
        {
            let mut recorded = recorder.0.lock().unwrap();
            recorded.before = point.acknowledged;
            recorded.newest = point.newest;
        }
        recorder.attach(&disk);
        let rig = Rig::open(disk.clone(), 3, SMALL).unwrap();
        recorder.watch(rig.store.durable());
        // Revisions that the cut took away are used anew from here on.
        let found = rig.store.revision();
        let history = history.iter().filter(|(revision, _)| **revision <= found).map(|(r, s)| (*r, *s)).collect();
        Self { rig, disk, recorder, history }
    }
}

impl<M: Medium> Run<M> {
    /// A new store; the crash points of its making are not recorded.
    pub(crate) fn create(disk: &SimDisk, medium: M, tuning: Tuning) -> Self {
        let rig = Rig::create(medium, 1, tuning).unwrap();
        Self::of(disk, rig)
    }

    fn of(disk: &SimDisk, rig: Rig<M>) -> Self {
        let recorder = Recorder::default();
        recorder.watch(rig.store.durable());
        recorder.changed(rig.store.revision());
        recorder.attach(disk);
        let mut run = Self { rig, disk: disk.clone(), recorder, history: HashMap::new() };
        run.remember();
        run
    }

    pub(crate) fn put(&mut self, key: u64, bytes: usize) {
        let fill = u8::try_from(self.rig.store.revision().0 % 251).unwrap();
        self.rig.put(key, &vec![fill; bytes]);
        self.remember();
    }

    pub(crate) fn remove(&mut self, key: u64) {
        self.rig.remove(key);
        self.remember();
    }

    /// Two steps are as long as changes gather.
    pub(crate) fn step(&mut self) {
        self.rig.step();
        self.rig.clock.advance(GATHER_DELAY / 2);
    }

    fn remember(&mut self) {
        let revision = self.rig.store.revision();
        self.history.insert(revision, state(&self.rig.records()));
        self.recorder.changed(revision);
    }
}

fn state(records: &[(u64, Vec<u8>)]) -> u64 {
    let mut hasher = DefaultHasher::new();
    records.hash(&mut hasher);
    hasher.finish()
}

/// What exploring has seen.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Seen {
    pub(crate) points: u64,
    pub(crate) states: u64,
    pub(crate) images: u64,
    pub(crate) sampled_points: u64,
}

impl Seen {
    pub(crate) fn add(&mut self, other: Self) {
        self.points += other.points;
        self.states += other.states;
        self.images += other.images;
        self.sampled_points += other.sampled_points;
    }
}

/// A promise that was broken.
#[derive(Debug, Clone)]
pub(crate) enum Broken {
    /// ACK: an acknowledged change is gone.
    Lost { point: usize, acknowledged: Revision, found: Revision },
    /// ATOM: a state that memory never held, or not yet.
    Invented { point: usize, found: Revision },
    /// What a power cut may leave must open.
    Closed { point: usize, error: StoreError },
}

type Found = Result<(Revision, u64), StoreError>;

/// Opens every image of every point, and checks what it finds.
pub(crate) fn explore(points: &[Point], history: &HashMap<Revision, u64>, seed: u64) -> Result<Seen, Broken> {
    let mut seen = Seen::default();
    let mut known: HashMap<u128, Found> = HashMap::new();
    for (number, point) in points.iter().enumerate() {
        let subsets = Subsets::new(point.crash.uncertain(), seed ^ number as u64);
        seen.points += 1;
        seen.sampled_points += u64::from(!subsets.is_exhaustive());
        for survives in subsets {
            seen.states += 1;
            let image = point.crash.image(|effect| survives[effect]);
            let found = known.entry(digest(&image)).or_insert_with(|| {
                seen.images += 1;
                recover(image)
            });
            judge(number, point, history, found)?;
        }
    }
    Ok(seen)
}

fn recover(image: BTreeMap<String, Vec<u8>>) -> Found {
    let rig = Rig::open(SimDisk::of(image, 512), 2, SMALL)?;
    Ok((rig.report.revision, state(&rig.records())))
}

fn judge(number: usize, point: &Point, history: &HashMap<Revision, u64>, found: &Found) -> Result<(), Broken> {
    match *found {
        Err(error) => Err(Broken::Closed { point: number, error }),
        Ok((found, _)) if found < point.acknowledged => {
            Err(Broken::Lost { point: number, acknowledged: point.acknowledged, found })
        }
        Ok((found, state)) if found > point.newest || history.get(&found) != Some(&state) => {
            Err(Broken::Invented { point: number, found })
        }
        Ok(_) => Ok(()),
    }
}

/// Recovery sees these two files and no other.
fn digest(image: &BTreeMap<String, Vec<u8>>) -> u128 {
    let half = |salt: u8| {
        let mut hasher = DefaultHasher::new();
        salt.hash(&mut hasher);
        image.get("trust.hf").hash(&mut hasher);
        image.get("floor").hash(&mut hasher);
        u128::from(hasher.finish())
    };
    half(0) << 64 | half(1)
}

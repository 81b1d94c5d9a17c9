//! What a node of these suites stands on: a simulated disk, the drainer over it, which a test steps by hand, and what the
//! book's observer has heard.

use std::sync::{Arc, Mutex};

use handfast_protocol::{PeerId, SecretKey, UnixMillis};
use handfast_trust::sim::{SMALL, SimClock, SimDisk};
use handfast_trust::{
    Cause, Drainer, Floor, LAZY_DELAY, Monotonic, Next, Policy, Record, Site, Store, Transition, TrustState, create,
    open,
};

/// Where most tests begin: long after 1970, so that epochs that follow the clock are past all small numbers.
pub(crate) const NOON: UnixMillis = UnixMillis(1_000_000_000_000);
pub(crate) const MINUTE: u64 = 60_000;
pub(crate) const HOUR: u64 = 60 * MINUTE;
pub(crate) const DAY: u64 = 24 * HOUR;

pub(crate) fn key(number: u32) -> SecretKey {
    let mut seed = [0; 32];
    seed[..4].copy_from_slice(&number.to_le_bytes());
    SecretKey::from_seed(&seed)
}

/// This node.
pub(crate) fn me() -> SecretKey {
    key(0)
}

/// Room for everybody, no rule.
pub(crate) fn open_policy() -> Policy {
    Policy {
        deny: Default::default(),
        allow: Default::default(),
        accept_all: false,
        grants_per_hour: 1_000_000,
        grants_total: 1_000_000,
        grants_per_sponsor: 1_000_000,
        pending_total: 1_000_000,
        pending_per_source: 1_000_000,
        pending_new_per_second: 1_000_000,
    }
}

pub(crate) fn site() -> Site {
    let owner = *me().peer_id().as_bytes();
    Site::new(owner, [3; 32], Arc::new(SimClock::default())).with_tuning(SMALL)
}

type Observer = dyn Fn(&PeerId, &Transition) + Send + Sync;
type Heard = Arc<Mutex<Vec<(PeerId, Transition)>>>;

/// Disk, drainer and observer of one node.
pub(crate) struct Ground {
    pub(crate) disk: SimDisk,
    drainer: Drainer<SimDisk>,
    time: Monotonic,
    heard: Heard,
}

impl Ground {
    /// As a start finds what a run has left, or an image of it.
    pub(crate) fn on(mut disk: SimDisk) -> Ground {
        let floor = Floor::read(&mut disk, site().owner()).unwrap();
        let drainer = Drainer::new(disk.clone(), &site(), floor);
        Ground { disk, drainer, time: Monotonic::default(), heard: Heard::default() }
    }

    /// With empty files of what `create` makes.
    pub(crate) fn fresh(create: impl FnOnce(&mut SimDisk)) -> Ground {
        let mut disk = SimDisk::default();
        Floor::default().write(&mut disk, site().owner()).unwrap();
        create(&mut disk);
        Ground::on(disk)
    }

    /// The records of one kind, which the drainer writes from now on.
    pub(crate) fn open<R: Record>(&mut self) -> Store<R> {
        let floor = Floor::read(&mut self.disk, site().owner()).unwrap();
        let opened = open::<R, _>(&mut self.disk, &site(), &floor).unwrap();
        self.drainer.add(opened.log);
        opened.store
    }

    pub(crate) fn observer(&self) -> Box<Observer> {
        let heard = self.heard.clone();
        Box::new(move |peer, transition| heard.lock().unwrap().push((*peer, *transition)))
    }

    /// Has the drainer write until this says that all is durable.
    pub(crate) fn drain(&mut self, is_durable: impl Fn() -> bool) {
        while !is_durable() {
            // A lazy change waits for company, for a while.
            self.time = self.time.plus(LAZY_DELAY);
            assert_ne!(self.drainer.step(self.time), Next::Stopped);
        }
    }

    /// Starts again after a kill: what was written is in the page cache, whether it was synced or not.
    pub(crate) fn killed(self) -> Ground {
        let cache = self.disk.crash_point().image(|_| true);
        Ground { heard: self.heard, ..Ground::on(SimDisk::of(cache, 512)) }
    }

    /// Stops and starts again, with the same observer.
    pub(crate) fn restarted(mut self) -> Ground {
        self.drainer.stop_switch().stop();
        while self.drainer.step(self.time) != Next::Stopped {}
        Ground { heard: self.heard, ..Ground::on(self.disk) }
    }

    /// The transitions since the last call.
    pub(crate) fn heard(&self) -> Vec<Transition> {
        self.heard.lock().unwrap().drain(..).map(|(_, transition)| transition).collect()
    }

    /// Of those the causes, with where they led.
    pub(crate) fn events(&self) -> Vec<(Cause, TrustState)> {
        self.heard().into_iter().map(|transition| (transition.cause, transition.to)).collect()
    }
}

/// Empty files of one kind of record.
pub(crate) fn begin<R: Record>(disk: &mut SimDisk) {
    create::<R, _>(disk, &site()).unwrap();
}

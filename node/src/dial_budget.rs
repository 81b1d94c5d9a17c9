//! How often an address is dialled in vain on somebody's word.
//!
//! Whoever signs an address record may name anybody's address. A few dials show that its peer is not there; a fleet
//! that goes on would be that peer's weapon, the more so where many keys name one address. So what is dialled in vain is
//! counted by address and by host, and left alone for a while: [`PER_ADDRESS`] at once and one every two minutes,
//! [`PER_HOST`] at once and one every ten seconds. A dial that leads to its peer costs nothing.
//!
//! Invariant (BOUND): [`DESTINATIONS_MAX`] are remembered; where that is not enough, those that were dialled least are
//! forgotten first.
//!
//! Not here: what an operator typed, and where a peer was itself seen: those are dialled as they are wanted.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Dials in vain to one address, before it is left alone; one of them is forgotten in each [`ADDRESS_EVERY`].
const PER_ADDRESS: u32 = 16;
const ADDRESS_EVERY: Duration = Duration::from_secs(120);
/// The same for all ports of a host.
const PER_HOST: u32 = 128;
const HOST_EVERY: Duration = Duration::from_secs(10);
/// Destinations that are remembered.
const DESTINATIONS_MAX: usize = 8_192;

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Destination {
    Address(SocketAddr),
    Host(IpAddr),
}

impl Destination {
    fn limit(self) -> (u32, Duration) {
        match self {
            Destination::Address(_) => (PER_ADDRESS, ADDRESS_EVERY),
            Destination::Host(_) => (PER_HOST, HOST_EVERY),
        }
    }

    fn both(at: SocketAddr) -> [Destination; 2] {
        [Destination::Address(at), Destination::Host(at.ip().to_canonical())]
    }
}

/// Dials in vain, as of a moment.
#[derive(Clone, Copy)]
struct Spent {
    dials: u32,
    since: Duration,
}

impl Spent {
    /// What is left of it at `now`, where one is forgotten in each `every`.
    fn at(self, every: Duration, now: Duration) -> Spent {
        let forgotten = now.saturating_sub(self.since).as_millis() / every.as_millis().max(1);
        let forgotten = u32::try_from(forgotten).unwrap_or(u32::MAX);
        match self.dials.saturating_sub(forgotten) {
            0 => Spent { dials: 0, since: now },
            dials => Spent { dials, since: self.since + every * forgotten },
        }
    }
}

/// See the module. Times are monotonic.
#[derive(Default)]
pub struct DialBudget {
    spent: Mutex<HashMap<Destination, Spent>>,
}

impl DialBudget {
    /// Whether `at` may be dialled now. A yes is counted as a dial in vain until [`DialBudget::reached`].
    pub fn take(&self, at: SocketAddr, now: Duration) -> bool {
        let mut spent = self.spent();
        let of = |spent: &HashMap<Destination, Spent>, destination: Destination| {
            let (_, every) = destination.limit();
            spent.get(&destination).copied().unwrap_or(Spent { dials: 0, since: now }).at(every, now)
        };
        if Destination::both(at).iter().any(|to| of(&spent, *to).dials >= to.limit().0) {
            return false;
        }
        for to in Destination::both(at) {
            let before = of(&spent, to);
            spent.insert(to, Spent { dials: before.dials + 1, ..before });
        }
        make_room(&mut spent, now);
        true
    }

    /// The dial led to its peer.
    pub fn reached(&self, at: SocketAddr) {
        let mut spent = self.spent();
        for to in Destination::both(at) {
            if let Some(spent) = spent.get_mut(&to) {
                spent.dials = spent.dials.saturating_sub(1);
            }
        }
    }

    fn spent(&self) -> MutexGuard<'_, HashMap<Destination, Spent>> {
        // A panic while the lock was held left a map of plain values: still usable.
        self.spent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Forgets what is forgotten, and if that is not enough, half of the rest: those that were dialled least.
fn make_room(spent: &mut HashMap<Destination, Spent>, now: Duration) {
    if spent.len() <= DESTINATIONS_MAX {
        return;
    }
    spent.retain(|to, spent| spent.at(to.limit().1, now).dials > 0);
    if spent.len() <= DESTINATIONS_MAX {
        return;
    }
    let mut dials: Vec<u32> = spent.values().map(|spent| spent.dials).collect();
    let (_, &mut median, _) = dials.select_nth_unstable(spent.len() / 2);
    let mut surplus = spent.len() - DESTINATIONS_MAX / 2;
    spent.retain(|_, spent| {
        let goes = surplus > 0 && spent.dials <= median;
        surplus -= usize::from(goes);
        !goes
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(host: u32, port: u16) -> SocketAddr {
        SocketAddr::from((std::net::Ipv4Addr::from(0x0a00_0000 + host), port))
    }

    #[test]
    fn an_address_is_left_alone_after_dials_in_vain() {
        let (budget, mut now) = (DialBudget::default(), Duration::ZERO);
        assert_eq!((0..100).filter(|_| budget.take(at(1, 1), now)).count(), PER_ADDRESS as usize);
        assert!(budget.take(at(1, 2), now) && budget.take(at(2, 1), now));
        now += ADDRESS_EVERY;
        assert_eq!((0..100).filter(|_| budget.take(at(1, 1), now)).count(), 1);
    }

    #[test]
    fn a_host_is_left_alone_whatever_ports_are_named() {
        let (budget, now) = (DialBudget::default(), Duration::ZERO);
        assert_eq!((1..1_000).filter(|port| budget.take(at(1, *port), now)).count(), PER_HOST as usize);
        assert!(budget.take(at(2, 1), now));
    }

    #[test]
    fn what_leads_to_its_peer_costs_nothing() {
        let (budget, now) = (DialBudget::default(), Duration::ZERO);
        for _ in 0..1_000 {
            assert!(budget.take(at(1, 1), now));
            budget.reached(at(1, 1));
        }
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (budget, now) = (DialBudget::default(), Duration::ZERO);
        assert_eq!((0..100).filter(|_| budget.take(at(0, 1), now)).count(), PER_ADDRESS as usize);
        for host in 1..20_000 {
            budget.take(at(host, 1), now);
            assert!(budget.spent().len() <= DESTINATIONS_MAX + 2);
        }
        assert!(!budget.take(at(0, 1), now), "the one that is dialled most is remembered");
    }
}

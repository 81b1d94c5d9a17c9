//! What keeps a node in its networks without an operator: joins that are half-done go on, rosters are read again,
//! certificates are renewed.
//!
//! A roster is read from a member that has a session: once an hour, and soon after a member was not found where it was,
//! because a common member may know where it went. So members that joined elsewhere are met, too.
//!
//! Invariants (BOUND): one thing at a time; what failed is tried again with backoff, at most every quarter of an hour;
//! a roster is read at most every [`REFRESH_MIN`], however many members are lost.
//!
//! Thread: one task on the data runtime.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use handfast_protocol::join::Errand;
use handfast_protocol::{Membership, NetworkId, PeerId, Role};
use handfast_trust::{Backoff, RetryPolicy, Standing};
use rand::RngExt as _;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior};

use super::JoinError;
use super::conversation::converse;
use crate::clock::unix_now;
use crate::engine::Engine;

/// How often it is looked whether something is due.
const EVERY: Duration = Duration::from_secs(5);
/// How long a join that was begun in this run is left to whoever began it.
const RESUME_AFTER: Duration = Duration::from_secs(60);
const REFRESH_EVERY: Duration = Duration::from_secs(3_600);
const REFRESH_MIN: Duration = Duration::from_secs(30);
/// Sponsors that are asked for a renewal at one time.
const SPONSORS_ASKED_MAX: usize = 4;
const POLICY: RetryPolicy =
    RetryPolicy { first: Duration::from_secs(1), cap: Duration::from_secs(15 * 60), deadline: None };

/// Rings for networks of which a member was not found.
#[derive(Default)]
pub struct UpkeepBell {
    lost: Mutex<HashSet<NetworkId>>,
    notify: Notify,
}

impl UpkeepBell {
    /// A member of these networks was not found where it was.
    pub fn lost(&self, networks: Vec<NetworkId>) {
        if networks.is_empty() {
            return;
        }
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).extend(networks);
        self.notify.notify_one();
    }

    fn take(&self) -> HashSet<NetworkId> {
        std::mem::take(&mut self.lost.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// When something is due again, and after how many failures.
struct Due {
    at: Instant,
    backoff: Backoff,
}

impl Due {
    fn now() -> Due {
        Due { at: Instant::now(), backoff: Backoff::new(POLICY) }
    }

    fn at(at: Instant) -> Due {
        Due { at, backoff: Backoff::new(POLICY) }
    }
}

struct Upkeep {
    engine: Arc<Engine>,
    rng: StdRng,
    joins: HashMap<NetworkId, Due>,
    rosters: HashMap<NetworkId, Due>,
    renewals: HashMap<NetworkId, Due>,
    /// No roster is read again before.
    refreshed: HashMap<NetworkId, Instant>,
}

/// Runs until it is aborted; everything in it is begun again after the next start.
pub async fn run(engine: Arc<Engine>, rng: StdRng) {
    let mut upkeep = Upkeep {
        engine: engine.clone(),
        rng,
        joins: HashMap::new(),
        rosters: HashMap::new(),
        renewals: HashMap::new(),
        refreshed: HashMap::new(),
    };
    for (network, record) in engine.networks.members().networks() {
        if record.joining.is_some() {
            upkeep.joins.insert(network, Due::now());
        }
    }
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = engine.upkeep.notify.notified() => {}
        }
        upkeep.round().await;
    }
}

impl Upkeep {
    async fn round(&mut self) {
        for network in self.engine.upkeep.take() {
            let soonest = self.refreshed.get(&network).map_or_else(Instant::now, |at| *at + REFRESH_MIN);
            let due = self.rosters.entry(network).or_insert_with(Due::now);
            due.at = due.at.min(soonest);
        }
        for (network, record) in self.engine.networks.members().networks() {
            match &record.joining {
                Some(joining) => self.resume(network, joining.inviter(), &joining.addresses).await,
                None => self.refresh(network).await,
            }
        }
        let engine = self.engine.clone();
        // A panic in it has been told; the next round tries again.
        let _ = tokio::task::spawn_blocking(move || engine.trim_addresses()).await;
        for (network, own) in self.engine.networks.due_for_renewal(unix_now()) {
            self.renew(network, own).await;
        }
    }

    async fn resume(&mut self, network: NetworkId, inviter: PeerId, addresses: &[handfast_protocol::Address]) {
        let due = self.joins.entry(network).or_insert_with(|| Due::at(Instant::now() + RESUME_AFTER));
        if due.at > Instant::now() {
            return;
        }
        let result = Box::pin(self.engine.resume_join(network, inviter, addresses)).await;
        match result {
            Ok(()) => drop(self.joins.remove(&network)),
            Err(error) => {
                tracing::info!(%network, %error, "the join is not done yet; it is tried again");
                self.again_later(network, |upkeep| &mut upkeep.joins);
            }
        }
    }

    fn again_later(&mut self, network: NetworkId, of: impl Fn(&mut Upkeep) -> &mut HashMap<NetworkId, Due>) {
        let now = self.engine.clock.now();
        let mut due = of(self).remove(&network).unwrap_or_else(Due::now);
        let wait = due.backoff.failed(now, &mut self.rng).map_or(POLICY.cap, |at| at.since(now));
        due.at = Instant::now() + wait;
        of(self).insert(network, due);
    }

    async fn refresh(&mut self, network: NetworkId) {
        let first = Instant::now() + REFRESH_EVERY.mul_f64(self.rng.random_range(0.0..=1.0));
        if self.rosters.entry(network).or_insert_with(|| Due::at(first)).at > Instant::now() {
            return;
        }
        let mut peers = self.engine.registry.session_peers();
        peers.retain(|peer| self.engine.networks.members().networks_of(peer).contains(&network));
        let Some(link) = peers.choose(&mut self.rng).and_then(|peer| self.engine.registry.session(peer)) else {
            return self.again_later(network, |upkeep| &mut upkeep.rosters);
        };
        self.refreshed.insert(network, Instant::now());
        match Box::pin(self.engine.read_roster(network, &link)).await {
            Ok(()) => {
                self.engine.enlist_members(network).await;
                let next = Instant::now() + REFRESH_EVERY.mul_f64(self.rng.random_range(0.9..=1.1));
                self.rosters.insert(network, Due::at(next));
            }
            Err(error) => {
                tracing::debug!(%network, %error, "the roster was not read");
                self.again_later(network, |upkeep| &mut upkeep.rosters);
            }
        }
    }

    async fn renew(&mut self, network: NetworkId, own: Membership) {
        if self.renewals.entry(network).or_insert_with(Due::now).at > Instant::now() {
            return;
        }
        match self.renewed(network, &own).await {
            Ok(()) => {
                self.renewals.remove(&network);
                tracing::info!(%network, "our certificate was renewed");
                // The others judge us by what we show: at once, and not when the old one has ended.
                self.engine.clone().tell(network, None, None).await;
            }
            Err(error) => {
                tracing::warn!(%network, %error, "our certificate was not renewed; it is tried again");
                self.again_later(network, |upkeep| &mut upkeep.renewals);
            }
        }
    }

    /// Asks a few sponsors, those with a session first.
    async fn renewed(&mut self, network: NetworkId, own: &Membership) -> Result<(), JoinError> {
        let engine = self.engine.clone();
        let is_sponsor = |standing: &Standing| matches!(standing, Standing::Member { role: Role::Sponsor, .. });
        let members = engine.networks.all_members(network, unix_now());
        let mut sponsors: Vec<PeerId> =
            members.into_iter().filter(|(_, standing)| is_sponsor(standing)).map(|(peer, _)| peer).collect();
        sponsors.retain(|peer| *peer != engine.book.me());
        sponsors.sort_by_cached_key(|peer| (engine.registry.session(peer).is_none(), self.rng.random::<u32>()));
        let mut last = JoinError::Unreached(crate::engine::ContactFault::NoAddress);
        for sponsor in sponsors.into_iter().take(SPONSORS_ASKED_MAX) {
            let asked = async {
                let link = engine.link_to(sponsor, &[]).await.map_err(JoinError::Unreached)?;
                converse(&engine, &link, Errand::Renew(Box::new(own.clone())), None).await?;
                Ok(())
            };
            match Box::pin(asked).await {
                Ok(()) => return Ok(()),
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

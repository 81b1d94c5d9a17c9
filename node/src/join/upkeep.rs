//! What keeps a node in its networks without an operator: joins that are half-done go on, rosters are read again,
//! certificates are renewed, and whoever was expelled asks members whether that still holds.
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
/// Members whom an expelled node asks at one time.
const APPEALED_TO_MAX: usize = 4;
/// From two minutes to six hours: ten times on the first day, and less than ten on each that follows.
const APPEALS: RetryPolicy =
    RetryPolicy { first: Duration::from_secs(120), cap: Duration::from_secs(6 * 3_600), deadline: None };

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
        Due::at(Instant::now())
    }

    fn at(at: Instant) -> Due {
        Due::by(POLICY, at)
    }

    fn by(policy: RetryPolicy, at: Instant) -> Due {
        Due { at, backoff: Backoff::new(policy) }
    }
}

struct Upkeep {
    engine: Arc<Engine>,
    rng: StdRng,
    joins: HashMap<NetworkId, Due>,
    rosters: HashMap<NetworkId, Due>,
    renewals: HashMap<NetworkId, Due>,
    appeals: HashMap<NetworkId, Due>,
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
        appeals: HashMap::new(),
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
        self.renew_own().await;
        for network in self.engine.upkeep.take() {
            let soonest = self.refreshed.get(&network).map_or_else(Instant::now, |at| *at + REFRESH_MIN);
            let due = self.rosters.entry(network).or_insert_with(Due::now);
            due.at = due.at.min(soonest);
        }
        for (network, record) in self.engine.networks.members().networks() {
            let standing = self.engine.networks.members().standing(&network, &self.engine.book.me(), unix_now());
            if matches!(standing, Standing::Expelled | Standing::SponsorExpelled) {
                self.appeal(network).await;
                continue;
            }
            self.appeals.remove(&network);
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

    /// Fetches what the authority has said since: a member that was readmitted may be where nobody finds it.
    async fn appeal(&mut self, network: NetworkId) {
        if self.appeals.entry(network).or_insert_with(|| Due::by(APPEALS, Instant::now())).at > Instant::now() {
            return;
        }
        if let Some(own) = self.engine.networks.own_chain(network) {
            let me = self.engine.book.me();
            for member in self.by_use(network, Standing::counts).into_iter().take(APPEALED_TO_MAX) {
                let errand = Errand::Expulsions(Box::new(own.clone()));
                let asked = Box::pin(self.ask(member, errand)).await;
                tracing::debug!(%network, peer = %member.short(), result = ?asked, "asked whether it is still expelled");
                if asked.is_ok() && !self.engine.networks.members().is_expelled(&network, &me) {
                    break;
                }
            }
        }
        self.again_later(network, |upkeep| &mut upkeep.appeals);
    }

    /// Members other than this node, those first that are likely to be reached and to know.
    fn by_use(&mut self, network: NetworkId, is_wanted: impl Fn(&Standing) -> bool) -> Vec<PeerId> {
        let engine = &self.engine;
        let members = engine.networks.all_members(network, unix_now());
        let is_sponsor = |standing: &Standing| matches!(standing, Standing::Member { role: Role::Sponsor, .. });
        let others = members.into_iter().filter(|(peer, standing)| *peer != engine.book.me() && is_wanted(standing));
        let mut list: Vec<(PeerId, Standing)> = others.collect();
        list.sort_by_cached_key(|(peer, standing)| {
            (engine.registry.session(peer).is_none(), !is_sponsor(standing), self.rng.random::<u32>())
        });
        list.into_iter().map(|(peer, _)| peer).collect()
    }

    /// One errand with one member.
    async fn ask(&self, member: PeerId, errand: Errand) -> Result<(), JoinError> {
        let link = self.engine.link_to(member, &[]).await.map_err(JoinError::Unreached)?;
        Ok(converse(&self.engine, &link, errand, None).await?)
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

    /// Renews what this node has of the networks whose authority is here: nobody else could. The others hear of it at once,
    /// and those to whom it had ended already when they are met next.
    async fn renew_own(&self) {
        let engine = &self.engine;
        let renewed = engine.networks.renew_own(unix_now());
        if renewed.affected.is_empty() {
            return;
        }
        engine.membership_changed(&renewed.affected);
        if let Err(error) = engine.networks.durable().reached(renewed.revision).await {
            tracing::warn!(%error, "our own certificates were renewed and are not on the disk yet");
            return;
        }
        for (network, _) in engine.networks.members().networks() {
            engine.clone().tell(network, None, None).await;
        }
        tracing::info!("our own certificates were renewed");
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
        let mut last = JoinError::Unreached(crate::engine::ContactFault::NoAddress);
        let sponsors = self.by_use(network, |of| matches!(of, Standing::Member { role: Role::Sponsor, .. }));
        for sponsor in sponsors.into_iter().take(SPONSORS_ASKED_MAX) {
            match Box::pin(self.ask(sponsor, Errand::Renew(Box::new(own.clone())))).await {
                Ok(()) => return Ok(()),
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

//! What is there before a load begins: keys, and the peers that the node is to trust already. What they cost is no part
//! of what is measured.
//!
//! How many are needed follows from the seed: which kind comes at which place, and when. Invariants (BOUND): at most
//! [`PREPARED_MAX`] of either; after [`FAILURES_MAX`] attempts that failed the load begins with those that there are.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;

use super::arrivals::Arrivals;
use super::kind::Kind;
use super::load::Load;
use super::plan::{PEERS_MAX, Plan};
use crate::output::Output;

/// 30 MB of keys.
const PREPARED_MAX: u64 = 20_000;
const AT_ONCE: usize = 32;
/// Four rounds: a node that is not there is noticed by the first.
const FAILURES_MAX: u64 = 128;
/// Trusted peers that come again and again, where nobody says how many there are; more where more come at once.
const AGAIN_AND_AGAIN: u64 = 1_000;
/// Operations a second of a closed loop that are prepared for; what comes beyond makes its peer when it is needed.
const CLOSED_RATE: u64 = 2_000;
/// Between two words on how far it is.
const TELL_EVERY: Duration = Duration::from_secs(2);

/// Makes everything ready, or what can be made until the load is stopped.
pub(super) async fn prepare(load: &Arc<Load>, output: Output) {
    load.peers.make_keys(load.plan.peers.unwrap_or(PREPARED_MAX).min(PREPARED_MAX));
    let needed = needed(&load.plan);
    if needed == 0 {
        return;
    }
    output.aside(&format!("First {needed} peers are made that the node trusts."));
    let left = Arc::new(AtomicU64::new(needed));
    let failures = Arc::new(AtomicU64::new(0));
    let mut workers = JoinSet::new();
    for _ in 0..AT_ONCE {
        workers.spawn(make(load.clone(), left.clone(), failures.clone()));
    }
    let told = async {
        loop {
            tokio::time::sleep(TELL_EVERY).await;
            let made = needed.saturating_sub(left.load(Ordering::Relaxed));
            output.aside(&format!("{made} of {needed} are made."));
        }
    };
    tokio::select! {
        () = async { while workers.join_next().await.is_some() {} } => {}
        never = told => never
    }
}

async fn make(load: Arc<Load>, left: Arc<AtomicU64>, failures: Arc<AtomicU64>) {
    let take = |left: u64| left.checked_sub(1);
    while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok() && !load.is_stopped() {
        match load.befriend().await {
            Some(Ok(peer)) => load.peers.give_back(peer),
            Some(Err(_)) if failures.fetch_add(1, Ordering::Relaxed) < FAILURES_MAX => {
                left.fetch_add(1, Ordering::Relaxed);
            }
            Some(Err(_)) | None => return,
        }
    }
}

/// How many trusted peers the operations of a load begin with. A revocation takes one for good. Of those that come again
/// there are as many as operations where the number of operations was asked for, so that each comes once.
fn needed(plan: &Plan) -> u64 {
    let mix = plan.mix();
    if mix.weight(Kind::Known) + mix.weight(Kind::Revoke) == 0 {
        return 0;
    }
    let (mut known, mut revoke) = (0, 0);
    for number in 0..operations(plan) {
        match mix.at(plan.seed, number) {
            Kind::Known => known += 1,
            Kind::Revoke => revoke += 1,
            _ => {}
        }
    }
    let at_once = u64::from(plan.concurrency.unwrap_or(plan.in_flight));
    let known = if plan.peers.is_some() { known } else { known.min(at_once.max(AGAIN_AND_AGAIN)) };
    PREPARED_MAX.min(known + revoke)
}

/// How many operations there will be, about: exactly where that follows from the plan.
fn operations(plan: &Plan) -> u64 {
    let most = plan.peers.unwrap_or(PEERS_MAX);
    let Some(ms) = plan.duration_ms else { return most };
    match plan.rate {
        Some(rate) => {
            let arrivals = Arrivals::new(plan.seed, rate, Duration::from_millis(plan.ramp_ms));
            let most = usize::try_from(most).unwrap_or(usize::MAX);
            arrivals.take(most).take_while(|at| *at < Duration::from_millis(ms)).count() as u64
        }
        None => most.min(CLOSED_RATE.saturating_mul(ms) / 1_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storm::plan::{Wishes, scenario};

    #[test]
    fn every_operation_finds_the_peer_that_it_begins_with() {
        let of = |wishes| needed(&Plan::of(wishes, None, true, 5).unwrap());
        let wishes = |mix: &str| Wishes { mix: Some(mix.into()), ..Wishes::default() };
        assert_eq!(of(wishes("new=1")), 0);
        assert_eq!(of(Wishes { peers: Some(7_000), ..wishes("known=1") }), 7_000);
        assert_eq!(of(Wishes { peers: Some(1_000_000), ..wishes("revoke=1") }), PREPARED_MAX);
        let open = |mix: &str| Wishes { rate: Some(500.0), duration: Some("10s".into()), ..wishes(mix) };
        assert!(of(open("revoke=1")).abs_diff(5_000) < 300, "as many as arrive");
        assert_eq!(of(open("known=1")), AGAIN_AND_AGAIN);
        assert_eq!(of(Wishes { in_flight: Some(3_000), ..open("known=1") }), 3_000);
        let reconnect = of(scenario("reconnect").unwrap());
        assert!(reconnect.abs_diff(2_850) < 60, "each comes once: {reconnect}");
    }
}

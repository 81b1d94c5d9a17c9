//! A node whose permits are all taken: who has proven an address waits for one, and begins when it comes back.

#![allow(clippy::unwrap_used, reason = "what fails in a suite is to be seen")]

mod nodes;

use std::sync::Arc;

use handfast::admission::{Arrival, FULL_PATIENCE_MAX, STRANGERS_MAX, Slot, Verdict};
use handfast::engine::{DIAL_DEADLINE, Engine};
use nodes::{Home, until};

/// All strangers' permits, of handshakes that are slow because everything is.
fn all_permits(engine: &Arc<Engine>) -> Vec<Slot> {
    let arrival = Arrival { remote: "192.0.2.1:4433".parse().unwrap(), is_validated: true };
    let now = engine.clock.now().0;
    let take = |_| match engine.admission.judge(arrival, now, |_| false) {
        Verdict::Accept(slot) => slot,
        _ => panic!("a permit is taken"),
    };
    let mut permits: Vec<Slot> = (0..STRANGERS_MAX).map(take).collect();
    // Nobody makes way before these have had the most that anybody gets.
    permits.iter_mut().for_each(|slot| slot.answered(now + FULL_PATIENCE_MAX));
    permits
}

#[tokio::test]
async fn who_finds_no_permit_begins_as_soon_as_one_comes_back() {
    let homes = [Home::new(), Home::new()];
    let roomy = |config: &mut handfast::config::Config| {
        (config.handshakes_per_address, config.handshakes_per_prefix) = (1_000_000, 1_000_000);
    };
    let [a, b] = [&homes[0], &homes[1]].map(|home| home.start_bare(roomy));
    let (from, to) = (a.engine().clone(), b.engine().clone());
    // It waits at most for a second: on a machine that stands still for longer it is refused, and comes again.
    loop {
        let mut permits = all_permits(&to);
        let (peer, at) = (to.book.me(), to.transport.local_addrs()[0]);
        let dialler = from.clone();
        let dial = tokio::spawn(async move { dialler.transport.dial(&peer, at, DIAL_DEADLINE).await });
        until("it waits, or was told that there is no room", || {
            to.admission.in_use().seated == 1 || dial.is_finished()
        })
        .await;
        assert_eq!(to.admission.counts().accepted % u64::from(STRANGERS_MAX), 0, "no permit, no handshake");
        permits.pop();
        if dial.await.unwrap().is_ok() {
            break;
        }
    }
    assert_eq!((to.admission.in_use().seated, to.admission.counts().evicted), (0, 0));
    for node in [a, b] {
        node.end_tasks();
        node.close().unwrap();
    }
}

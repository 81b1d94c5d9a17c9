//! A node whose disk has stopped answering still learns of its own revocations.

#![allow(clippy::unwrap_used, reason = "what fails in a suite is to be seen")]

mod nodes;

use std::sync::{Arc, Condvar, Mutex};

use handfast::control::api::{PeerRequest, TrustRequest};
use handfast::node::Node;
use handfast::storm::slow_medium::{SlowMedium, Wait};
use handfast_protocol::{Kind, PeerId, SecretKey, UnixMillis};
use handfast_trust::TrustState;
use nodes::{ANYWHERE, Home, PATIENCE, until, until_state};
use tokio::time::timeout;

/// What syncs wait for.
#[derive(Default)]
struct Gate {
    is_closed: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    fn set(&self, closed: bool) {
        *self.is_closed.lock().unwrap() = closed;
        self.opened.notify_all();
    }

    fn wait(self: &Arc<Gate>) -> Wait {
        let gate = self.clone();
        Arc::new(move || drop(gate.opened.wait_while(gate.is_closed.lock().unwrap(), |closed| *closed).unwrap()))
    }
}

fn trust(peer: &PeerId, at: Option<&Node>, note: &str) -> TrustRequest {
    TrustRequest {
        peer: peer.to_string(),
        address: at.map(|node| node.local_addrs()[0].to_string()),
        note: Some(note.to_owned()),
        ..TrustRequest::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grant_that_is_answered_busy_still_brings_a_revoke_of_our_own_back() {
    let [a_home, b_home] = [Home::new(), Home::new()];
    let [a_id, b_id] = [a_home.peer, b_home.peer];
    let start = |home: &Home| tokio::task::block_in_place(|| home.start(ANYWHERE, &[], |_| {}));
    let stop = |node: Node| tokio::task::block_in_place(|| node.stop().unwrap());

    let (a, b) = (start(&a_home), start(&b_home));
    a.operator().trust(&trust(&b_id, Some(&b), "")).await.unwrap();
    b.operator().trust(&trust(&a_id, Some(&a), "")).await.unwrap();
    until_state(&a, &b_id, TrustState::Trusted).await;
    until_state(&b, &a_id, TrustState::Trusted).await;
    stop(b);
    let old = b_home.copy();
    let b = start(&b_home);
    b.operator().revoke(&PeerRequest { peer: a_id.to_string(), ..PeerRequest::default() }).await.unwrap();
    until_state(&a, &b_id, TrustState::Refused).await;
    until("A's word of the revoke is on its disk", || {
        a.engine().book.durable().current() >= a.engine().book.store().revision()
    })
    .await;
    stop(a);
    stop(b);
    b_home.put_back(&old);

    // B knows nothing of its revoke, and its disk stops answering.
    let gate = Arc::new(Gate::default());
    let b = tokio::task::block_in_place(|| {
        b_home.start_on(ANYWHERE, &[], |_| {}, |directory| SlowMedium::behind(directory, gate.wait()))
    });
    assert_eq!(b.engine().book.state(&a_id, UnixMillis(0)), TrustState::Trusted);
    gate.set(true);
    let operator = b.operator().clone();
    let somebody = trust(&SecretKey::from_seed(&[5; 32]).peer_id(), None, "");
    let pending = tokio::spawn(async move { operator.trust(&somebody).await });
    until("B's disk counts as dead", || b.engine().degraded().is_some()).await;

    // A is at another port, so that it is A who dials: with a grant, which B cannot take, and with B's own revoke.
    let a = start(&a_home);
    let before = b.engine().book.durable().current();
    let asked = a.operator().trust(&trust(&b_id, Some(&b), "again")).await.unwrap();
    assert!(asked.durable);
    until_state(&b, &a_id, TrustState::Revoked).await;
    let record = b.engine().book.record(&a_id).unwrap();
    assert_eq!(record.ours.as_ref().map(|ours| ours.terms.kind), Some(Kind::Revoke));
    assert_ne!(record.theirs.as_ref().unwrap().terms.note.as_str(), "again", "the grant was not taken");
    assert_eq!(b.engine().book.durable().current(), before, "nothing is durable yet");
    assert_eq!(a.engine().book.state(&b_id, UnixMillis(0)), TrustState::Refused);

    gate.set(false);
    assert!(!pending.await.unwrap().unwrap().durable || b.engine().degraded().is_none());
    let revision = b.engine().book.store().revision();
    timeout(PATIENCE, b.engine().book.durable().reached(revision)).await.unwrap().unwrap();
    stop(a);
    stop(b);
}

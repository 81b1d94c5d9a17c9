//! A node that starts again knows where its friends were.

#![allow(clippy::unwrap_used, reason = "what fails in a suite is to be seen")]

mod nodes;

use handfast::admission::{Arrival, Verdict};
use handfast::control::api::TrustRequest;
use handfast::node::Node;
use handfast_protocol::PeerId;
use handfast_trust::TrustState;
use nodes::{ANYWHERE, Home, until, until_state};

async fn trust(node: &Node, peer: &PeerId, at: &Node) {
    let address = Some(at.local_addrs()[0].to_string());
    let request = TrustRequest { peer: peer.to_string(), address, ..TrustRequest::default() };
    node.operator().trust(&request).await.unwrap();
}

/// Whether one from this machine who has proven its address gets a friend's permit.
fn is_friends(node: &Node) -> bool {
    let engine = node.engine();
    let is_trusted = |peer: &PeerId| engine.book.state(peer, handfast::clock::unix_now()) == TrustState::Trusted;
    let arrival = Arrival { remote: ANYWHERE, is_validated: true };
    let verdict = engine.admission.judge(arrival, engine.clock.now().0, is_trusted);
    matches!(verdict, Verdict::Accept(_)) && engine.admission.in_use().friends == 1
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_restart_friends_are_expected_where_they_were_last() {
    let [a_home, b_home] = [Home::new(), Home::new()];
    let start = |home: &Home| tokio::task::block_in_place(|| home.start(ANYWHERE, &[], |_| {}));
    let stop = |node: Node| tokio::task::block_in_place(|| node.stop().unwrap());
    let (a, b) = (start(&a_home), start(&b_home));
    trust(&a, &b_home.peer, &b).await;
    trust(&b, &a_home.peer, &a).await;
    until_state(&b, &a_home.peer, TrustState::Trusted).await;
    until("B has seen A", || {
        b.engine().peers.read(|table| table.get(&a_home.peer).is_some_and(|a| a.observed.is_some()))
    })
    .await;
    stop(a);
    stop(b);

    let b = start(&b_home);
    until("A is a friend", || is_friends(&b)).await;
    assert_eq!(b.engine().registry.counts(), (0, 0), "nobody has come meanwhile");
    b.operator()
        .block(&handfast::control::api::PeerRequest { peer: a_home.peer.to_string(), ..Default::default() })
        .await
        .unwrap();
    assert!(!is_friends(&b), "only while it is trusted");
    stop(b);
}

//! Who is not to be told, or keeps nothing of what it is told, is not asked again and again.

#![allow(clippy::unwrap_used, reason = "what fails in a suite is to be seen")]

mod nodes;

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use handfast::control::api::{PeerRequest, TrustRequest};
use handfast_protocol::SecretKey;
use nodes::Home;
use tokio::time::timeout;

/// No event for so long means that none will come.
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_refuses_us_is_asked_once() {
    let [a_home, b_home] = [Home::new(), Home::new()];
    let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
    let start = |home: &Home| tokio::task::block_in_place(|| home.start(anywhere, &[], |_| {}));
    let (a, b) = (start(&a_home), start(&b_home));
    let request = PeerRequest { peer: a_home.peer.to_string(), ..PeerRequest::default() };
    b.operator().block(&request).await.unwrap();

    let ask =
        |peer: String, at: SocketAddr| TrustRequest { peer, address: Some(at.to_string()), ..TrustRequest::default() };
    a.operator().trust(&ask(b_home.peer.to_string(), b.local_addrs()[0])).await.unwrap();
    // Somebody who never answers: that a dial of it has been given up is the event that comes seconds later.
    let silent = UdpSocket::bind(anywhere).unwrap();
    let nobody = SecretKey::from_seed(&[7; 32]).peer_id();
    a.operator().trust(&ask(nobody.to_string(), silent.local_addr().unwrap())).await.unwrap();
    let given_up = async {
        loop {
            let seen = a.engine().events.newest();
            if a.engine().last_fault(&nobody).is_some() {
                return;
            }
            a.engine().events.wait_past(seen).await;
        }
    };
    timeout(PATIENCE, given_up).await.unwrap();
    assert_eq!(b.engine().admission.counts().accepted, 1, "connections of one that is blocked");
    assert!(a.engine().owes(&b_home.peer), "it has not got our grant");
    tokio::task::block_in_place(|| [a, b].into_iter().for_each(|node| node.stop().unwrap()));
}

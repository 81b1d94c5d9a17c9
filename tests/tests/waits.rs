//! Those who wait for a peer's trust leave room for those who take theirs back.

#![allow(clippy::unwrap_used, reason = "what fails in a suite is to be seen")]

mod nodes;

use std::sync::Arc;

use handfast::control::api::{ErrorCode, PeerRequest, TrustRequest};
use handfast::operations::WAITS_MAX;
use handfast_protocol::SecretKey;
use nodes::{ANYWHERE, Home, until};

/// Nobody who is there.
fn peer(number: u8) -> String {
    SecretKey::from_seed(&[number; 32]).peer_id().to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_so_many_wait_and_a_revoke_is_heard_all_the_same() {
    let home = Home::new();
    let node = Arc::new(tokio::task::block_in_place(|| home.start(ANYWHERE, &[], |_| {})));
    let request = |number: u8, wait_ms| TrustRequest { peer: peer(number), wait_ms, ..TrustRequest::default() };
    let most = u8::try_from(WAITS_MAX).unwrap();
    let mut waiting = tokio::task::JoinSet::new();
    for number in 1..=most {
        let (node, request) = (node.clone(), request(number, Some(3_600_000)));
        waiting.spawn(async move { node.operator().trust(&request).await.map(|_| ()) });
    }
    // Each has its place before it changes anything.
    let is_granted = |number: u8| node.engine().book.record(&peer(number).parse().unwrap()).is_some();
    until("all of them wait", || (1..=most).all(is_granted)).await;

    let one_more = node.operator().trust(&request(most + 1, Some(1_000))).await.unwrap_err();
    assert_eq!(one_more.code, ErrorCode::TryAgain);
    assert!(!is_granted(most + 1), "nothing was done");
    node.operator().trust(&request(most + 1, None)).await.unwrap();
    let revoke = PeerRequest { peer: peer(most + 1), ..PeerRequest::default() };
    node.operator().revoke(&revoke).await.unwrap();

    // Who gives up leaves its place to the next one, which waits in vain.
    waiting.abort_all();
    while waiting.join_next().await.is_some() {}
    let next = node.operator().trust(&request(1, Some(1))).await.unwrap_err();
    assert_eq!(next.code, ErrorCode::TimedOut);
    let node = Arc::into_inner(node).unwrap();
    tokio::task::block_in_place(|| node.stop().unwrap());
}

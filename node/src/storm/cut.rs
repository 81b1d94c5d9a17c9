//! The operator takes trust back from a peer with a live session, while the storm goes on: how long that takes to be
//! durable, and how long the session still serves.
//!
//! The peer pings without a pause. A ping that was answered was authorised by the node, so the last answer is at or
//! after the last moment in which the node accepted something of it: what is reported is that, counted from the moment
//! at which the revocation was *asked for*, an upper bound of the time from the release of the lock.

use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::hostile::settle_down;
use super::kind::Kind;
use super::ledger::Cut;
use super::load::Load;
use super::peer::Fault;
use crate::control::api::{PeerRequest, RevokeReply};
use crate::links;

/// How long the connection may stay open once the revocation is durable.
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);
/// Answered pings before the revocation, so that the session is known to serve.
const PINGS_BEFORE: usize = 3;

/// One such revocation, counted.
pub(super) async fn cut(load: &Load) {
    let (mut peer, conversed) = match settle_down(load).await {
        Ok(settled) => settled,
        Err(fault) => return load.failed(Kind::Cut, fault),
    };
    let connection = conversed.connection.clone();
    let (mut seen, id) = (Seen::default(), peer.key.peer_id().to_string());
    let served = async {
        peer.serve(&connection, &load.target).await;
        // The reply may come after the end of the connection.
        std::future::pending().await
    };
    let outcome = tokio::select! {
        outcome = revoked(load, &id, &connection, &mut seen) => outcome,
        never = served => never,
    };
    conversed.close();
    peer.memory.cut = seen.cut;
    match outcome {
        Ok((asked, durable_after)) => {
            let serves_for = seen.last.map_or(Duration::ZERO, |last| last.saturating_duration_since(asked));
            load.cut(durable_after, serves_for);
        }
        Err(fault) => load.failed(Kind::Cut, fault),
    }
    load.peers.retire(peer);
}

/// What was seen of one revocation, whatever became of it.
#[derive(Default)]
struct Seen {
    cut: Cut,
    /// When a ping was answered last.
    last: Option<Instant>,
}

/// Revokes. Returns when it was asked for and how long it took.
async fn revoked(
    load: &Load,
    peer: &str,
    connection: &quinn::Connection,
    Seen { cut, last }: &mut Seen,
) -> Result<(Instant, Duration), Fault> {
    let control = load.control.as_ref().ok_or(Fault::NotSent)?;
    for _ in 0..PINGS_BEFORE {
        links::ping(connection, 0).await.map_err(|_| Fault::Closed(None))?;
    }
    let pings = async {
        while links::ping(connection, 0).await.is_ok() {
            *last = Some(Instant::now());
        }
        let _ = timeout(CLOSE_PATIENCE, connection.closed()).await;
    };
    let asked = Instant::now();
    let request = PeerRequest { peer: peer.to_owned(), ..PeerRequest::default() };
    *cut = Cut::Asked;
    let revoke = async {
        let reply: Option<RevokeReply> = control.post("/v1/revoke", &request).await;
        reply.filter(|reply| reply.durable)?;
        *cut = Cut::Durable;
        Some(asked.elapsed())
    };
    let (took, ()) = tokio::join!(revoke, pings);
    if connection.close_reason().is_none() {
        return Err(Fault::Kept("after its revocation"));
    }
    took.map(|took| (asked, took)).ok_or(Fault::TimedOut)
}

//! Where the node's side of the truth comes from: the records of a node that was killed, or what somebody else's node
//! answers when it is asked again.

use handfast_trust::trust_record::{TrustState, View};

use super::ledger::{Memory, Stored, Truth, compare};
use super::own_node::OwnNode;
use super::peer::{Group, Peer, Target};
use super::plan::Plan;
use crate::clock::unix_now;
use crate::commands::{NODE_ROLE, Patience, acquire};
use crate::config::Config;
use crate::control::api::{ApiError, ErrorCode};
use crate::stores;
use crate::transport::Callers;

/// How many identities somebody else's node is asked about.
const SAMPLE_MAX: usize = 200;

/// What recovery finds in the directory of the own node, which has been killed.
pub(super) async fn of_own_node(own: &OwnNode, memories: &[Memory]) -> Result<Truth, ApiError> {
    let directory = own.directory()?;
    let lock = acquire(&directory, NODE_ROLE, Patience::Command).await?;
    let opened = stores::open_all(&directory, lock)?;
    let now = unix_now();
    let stored = |peer: &handfast_protocol::PeerId| {
        let record = opened.stores.trust.read(|table| table.get(peer).cloned())?;
        Some(Stored::of(&record, record.state(&View::outside(false, now))))
    };
    let truth = compare(memories, stored);
    opened.stores.close()?;
    Ok(truth)
}

/// What somebody else's node says that it holds, of a sample of the peers.
pub(super) async fn of_remote(plan: &Plan, target: &Target, memories: &[Memory]) -> Result<(Truth, String), ApiError> {
    let failed = |error: crate::transport::TransportError| ApiError::new(ErrorCode::Failure, format!("{error}."));
    let callers = Callers::bind(&plan.addresses(target.at), &Config::default().transport()).map_err(failed)?;
    let promised: Vec<&Memory> =
        memories.iter().filter(|memory| memory.said.iter().any(|said| said.acknowledged)).collect();
    let step = promised.len().div_ceil(SAMPLE_MAX).max(1);
    let (mut truth, mut asked, mut silent) = (Truth::default(), 0, 0);
    truth.wrong = memories.iter().filter(|memory| memory.contradicted).count() as u64;
    for memory in promised.into_iter().step_by(step) {
        let group = if memory.may_be_forgotten { Group::Strangers } else { Group::Friends };
        let mut peer = Peer::new(plan.seed, group, memory.number);
        match peer.ask(&callers, target).await {
            Ok((holds, disposition)) => {
                asked += 1;
                let found = holds.and_then(|held| memory.said.iter().find(|said| said.held == held));
                let state = match disposition {
                    handfast_protocol::exchange::Disposition::Granted => TrustState::Trusted,
                    _ => TrustState::Unknown,
                };
                let theirs = holds.map(|held| (held, found.map_or(handfast_protocol::Kind::Grant, |said| said.kind)));
                let bare = Memory { granted: None, contradicted: false, ..memory.clone() };
                truth.add(bare.compare(holds.map(|_| Stored { theirs, ours: None, state }).as_ref()));
            }
            Err(_) => silent += 1,
        }
    }
    let quiet = if silent > 0 { format!(", {silent} without an answer") } else { String::new() };
    Ok((truth, format!("{asked} of {} peers asked again{quiet}", memories.len())))
}

//! Peers that vanish: after so many datagrams nothing comes from them any more, no farewell either. Each has a socket of
//! its own, which falls silent.

use std::time::Duration;

use handfast_protocol::Kind as Statement;
use handfast_protocol::exchange::Disposition;
use tokio::time::timeout;

use super::load::Load;
use super::mute::{MuteSocket, Muteness};
use super::peer::Fault;
use crate::config::Config;
use crate::transport::Callers;

/// Datagrams of a whole conversation, about: one that vanishes after more has said everything but its farewell.
const DATAGRAMS: u64 = 6;
/// How long it pretends to be there.
const PATIENCE: Duration = Duration::from_secs(2);

/// One peer that grants and vanishes at `stage`.
pub(super) async fn vanish(load: &Load, stage: u64) -> Result<(), Fault> {
    let Some(mut peer) = load.peers.new_friend() else { return Err(Fault::NotSent) };
    let datagrams = u32::try_from(1 + stage % DATAGRAMS).unwrap_or(1);
    let from = load.plan.crowd_addresses(load.target.at);
    let place = usize::try_from(peer.number).unwrap_or_default() % from.len().max(1);
    let wrap = |socket| MuteSocket::wrap(socket, Muteness::After { datagrams });
    let settings = Config::default().transport();
    let callers = Callers::bind_through(&from[place..place + 1], &settings, wrap).map_err(|_| Fault::NotSent)?;
    let conversation = peer.converse(&callers, &load.target, Some(Statement::Grant), Disposition::Granted);
    // Whatever became of it: nobody hears its end.
    let _ = timeout(PATIENCE, conversation).await;
    load.peers.retire(peer);
    Ok(())
}

//! A simulated member, as a storm's peers are: a key, an endpoint of its own, the project's own machine for an exchange,
//! and nothing on a disk. It checks the certificate that it is shown, signs its grant, and keeps the connection.
//!
//! A thousand whole nodes in one process are a thousand drainers' threads, and most of what one would measure.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use handfast::clock::unix_now;
use handfast::driver::read_frame_in_time;
use handfast::entropy;
use handfast::transport::{Transport, peer_of};
use handfast_protocol::exchange::{
    AnswerTerms, Disposition, Parties, Responder, ResponderInput, ResponderOutput, Shown, Standing,
};
use handfast_protocol::limits::{FRAME_BYTES_MAX, HEAD_BYTES_MAX};
use handfast_protocol::statement::next_epoch;
use handfast_protocol::stream::{Head, StreamKind};
use handfast_protocol::{
    AddressRecord, ExpulsionsHeld, Incarnation, Kind, Membership, Note, PeerId, SecretKey, SignedAddressRecord,
    Statement, Terms,
};
use quinn::{RecvStream, SendStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::member::{DAY_MS, certificate, config, failed};

const TLS_DEADLINE: Duration = Duration::from_secs(5);

/// See the module.
pub(crate) struct Simulated {
    who: Arc<Who>,
    serving: JoinHandle<()>,
}

struct Who {
    key: SecretKey,
    transport: Transport,
    incarnation: Incarnation,
    membership: Mutex<Option<Membership>>,
}

impl Simulated {
    pub(crate) fn start() -> Result<Simulated> {
        let key = SecretKey::from_seed(&entropy::bytes().map_err(failed)?);
        let config = config();
        let transport = Transport::bind(&config.listen, &key, &config.transport())?;
        let incarnation = entropy::incarnation().map_err(failed)?;
        let who = Arc::new(Who { key, transport, incarnation, membership: Mutex::default() });
        Ok(Simulated { serving: tokio::spawn(accept(who.clone())), who })
    }

    /// Is made a member by the authority.
    pub(crate) fn is_member(&self, authority: &SecretKey) -> Result<Membership> {
        let made = certificate(authority, self.who.key.peer_id())?.membership().clone();
        *self.who.membership.lock().unwrap_or_else(PoisonError::into_inner) = Some(made.clone());
        Ok(made)
    }

    pub(crate) fn address(&self) -> Result<SignedAddressRecord> {
        let now = unix_now();
        let addresses = self.who.transport.local_addrs().into_iter().map(Into::into).collect();
        let record =
            AddressRecord { peer: self.who.key.peer_id(), addresses, epoch: now.0, expires_at: now.plus(DAY_MS) };
        Ok(record.sign(&self.who.key)?)
    }

    pub(crate) fn stop(self) {
        self.who.transport.close(handfast_protocol::CloseCode::Stopping);
        self.serving.abort();
    }
}

async fn accept(who: Arc<Who>) {
    while let Some(incoming) = who.transport.accept().await {
        let who = who.clone();
        tokio::spawn(async move {
            let Ok(connecting) = incoming.accept() else {
                return;
            };
            let Ok(Ok(connection)) = timeout(TLS_DEADLINE, connecting).await else {
                return;
            };
            let Some(peer) = peer_of(&connection) else {
                return;
            };
            while let Ok((mut send, mut recv)) = connection.accept_bi().await {
                // What goes wrong shows at the other end: no trust.
                let _ = respond(&who, peer, &mut send, &mut recv).await;
            }
        });
    }
}

async fn respond(who: &Who, peer: PeerId, send: &mut SendStream, recv: &mut RecvStream) -> Option<()> {
    let head = read_frame_in_time(recv, HEAD_BYTES_MAX).await.ok()??;
    if Head::read(&head) != Ok(StreamKind::Exchange) {
        return None;
    }
    let mut machine = Responder::new(Parties { me: who.key.peer_id(), peer, ours: None, theirs: None });
    let mut terms = None;
    let mut next = ResponderInput::Frame(read_frame_in_time(recv, FRAME_BYTES_MAX).await.ok()??);
    loop {
        next = match machine.handle(next) {
            ResponderOutput::Merge(shown) => {
                let decided = terms.insert(decide(who, peer, &shown)?);
                ResponderInput::Decided { terms: Box::new(decided.clone()), revision: 0 }
            }
            ResponderOutput::Reconsider => ResponderInput::Decided { terms: Box::new(terms.clone()?), revision: 0 },
            ResponderOutput::AwaitDurable(revision) => ResponderInput::Durable(revision),
            ResponderOutput::Answer(frame) => {
                send.write_all(&frame).await.ok()?;
                match read_frame_in_time(recv, FRAME_BYTES_MAX).await.ok()? {
                    Some(body) => ResponderInput::Frame(body),
                    None => ResponderInput::Closed,
                }
            }
            ResponderOutput::Finish { .. } => return send.finish().ok(),
        };
    }
}

/// Grants to whoever shows a certificate of the same network that holds.
fn decide(who: &Who, peer: PeerId, shown: &Shown) -> Option<AnswerTerms> {
    let membership = who.membership.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
    let network = membership.network();
    let proof = shown.networks.iter().find(|standing| standing.membership.network() == network)?;
    let proven = proof.membership.clone().verify().ok()?;
    let now = unix_now();
    let terms = Terms {
        kind: Kind::Grant,
        epoch: next_epoch(None, 0, now),
        issued_at: now,
        expires_at: None,
        scope: None,
        network: Some(network),
        note: Note::default(),
    };
    let grant = Statement { issuer: who.key.peer_id(), subject: peer, terms }.sign(&who.key).ok()?;
    (proven.member() == peer).then(|| AnswerTerms {
        disposition: Disposition::Granted,
        holds: shown.theirs.as_ref().map(handfast_protocol::Verified::held),
        statement: Some(grant.signed().clone()),
        yours: None,
        incarnation: who.incarnation,
        address: None,
        networks: vec![Standing { membership, expulsions: ExpulsionsHeld::default() }],
    })
}

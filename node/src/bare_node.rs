//! A node without runtimes and a control socket of its own: stores, engine, accept loop, outbox and upkeep, on the
//! runtime in which it is started. [`crate::node::Node`] adds the rest; programs that hold many nodes start these.
//!
//! Dropping it ends its tasks and its stores as a crash would.

use std::sync::Arc;
use std::time::Duration;

use handfast_protocol::PeerId;
use handfast_trust::{Book, Sessions, StorageHealth};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use tokio::task::JoinHandle;

use crate::admission::{Admission, Rates};
use crate::clock::unix_now;
use crate::config::Config;
use crate::control::api::{ApiError, ErrorCode};
use crate::engine::{Engine, Parts};
use crate::entropy;
use crate::events::EventLog;
use crate::join::upkeep;
use crate::links;
use crate::operations::policy;
use crate::outbox::{self, OutboxBell};
use crate::stores::{Opened, Stores};
use crate::transport::{Berths, Transport};
use crate::views;

/// How long a start waits until the sessions of a dead run are closed on disk.
const ORPHANS_PATIENCE: Duration = Duration::from_secs(5);

/// See the module.
pub struct BareNode {
    engine: Arc<Engine>,
    tasks: Vec<JoinHandle<()>>,
    stores: Option<Stores>,
}

impl BareNode {
    /// Starts it. Must be called within a tokio runtime with timers and I/O.
    ///
    /// # Errors
    /// Whatever keeps it from listening.
    pub fn start(opened: Opened, config: Config) -> Result<BareNode, ApiError> {
        BareNode::start_on(opened, config, Berths::shared())
    }

    /// As [`BareNode::start`], with connections on the threads of `berths`.
    ///
    /// # Errors
    /// As [`BareNode::start`].
    pub fn start_on(opened: Opened, config: Config, berths: Berths) -> Result<BareNode, ApiError> {
        let Opened { key, networks, stores, clock } = opened;
        let incarnation = entropy::incarnation()?;
        let events = Arc::new(EventLog::new());
        let (sessions, orphans, revision) = Sessions::open(stores.sessions.clone(), incarnation, unix_now());
        if orphans > 0 {
            let closed = sessions.durable().reached_blocking(revision, ORPHANS_PATIENCE);
            match closed {
                Ok(()) => tracing::info!(sessions = orphans, "closed the sessions of a run that died"),
                Err(error) => {
                    tracing::warn!(%error, sessions = orphans, "sessions of a dead run are not closed on disk")
                }
            }
        }
        if config.policy_accept_all {
            tracing::warn!("every request is granted (policy.accept_all): for tests and storms only");
        }
        let observer_events = events.clone();
        let observer = Box::new(move |peer: &PeerId, transition: &handfast_trust::Transition| {
            tracing::info!(peer = %peer.short(), from = %transition.from, to = %transition.to,
                revision = transition.revision.0, cause = transition.cause.as_str(), "trust changed");
            observer_events.push(transition.to.as_str(), Some(*peer), &views::event_cause(transition));
        });
        let rates = Rates { per_address: config.handshakes_per_address, per_prefix: config.handshakes_per_prefix };
        let admission = Arc::new(Admission::new(rates));
        let overlooks = {
            let (admission, clock) = (admission.clone(), clock.clone());
            Arc::new(move |ip| admission.overlooks(ip, clock.now().0))
        };
        let transport = Transport::bind_as(&config.listen, &key, &config.transport(), &berths, overlooks)
            .map_err(|error| ApiError::new(ErrorCode::Failure, format!("{error}.")).hint(error.hint()))?;
        let engine = Arc::new(Engine::new(Parts {
            book: Book::new(stores.trust.clone(), key.clone(), policy(&config), observer),
            peers: stores.peers.clone(),
            sessions: Arc::new(sessions),
            events,
            transport,
            incarnation,
            config,
            clock,
            health: stores.health(),
            outbox: OutboxBell::default(),
            networks,
            admission,
            berths,
            key,
        }));
        // What a dead run had not written of its networks is told now.
        engine.membership_changed(&[engine.book.me()]);
        let rng = || entropy::bytes().map(StdRng::from_seed);
        let expects = engine.clone();
        let tasks = vec![
            tokio::spawn(async move { expects.expect_friends() }),
            tokio::spawn(links::accept(engine.clone())),
            tokio::spawn(outbox::run(engine.clone(), rng()?)),
            tokio::spawn(upkeep::run(engine.clone(), rng()?)),
        ];
        Ok(BareNode { engine, tasks, stores: Some(stores) })
    }

    /// What everything else is asked of.
    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// Ends intake, outbox and upkeep. Exchanges that run go on.
    pub fn end_tasks(&self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }

    /// Writes what is left and releases the directory. Whatever uses the network is to have ended.
    ///
    /// # Errors
    /// `NotDurable` when changes could not be written: they are lost.
    pub fn close(mut self) -> Result<Option<StorageHealth>, ApiError> {
        self.stores.take().map(Stores::close).transpose()
    }
}

impl Drop for BareNode {
    fn drop(&mut self) {
        self.end_tasks();
    }
}

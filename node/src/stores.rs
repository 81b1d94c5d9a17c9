//! The stores of one data directory, opened under its lock and closed in order.
//!
//! Order of opening: lock (held by the caller), leftovers removed, floor, `trust.hf`, `invites.hf`, `peers.hf`,
//! `sessions.hf`, drainer. Closing is the reverse: last drain, drainer joined, lock released. Whatever cannot be believed ends the
//! opening with an error and every byte in place; only peers and sessions may be set aside and begun anew.

use std::sync::Arc;
use std::time::Duration;

use handfast_protocol::{PeerId, SecretKey};
use handfast_trust::{
    DirectoryLock, Drainer, DrainerHandle, DrainerThread, FileKind, Floor, Medium, NetRecord, Networks, Next,
    PeerRecord, RealDir, SessionRecord, Site, StorageHealth, Store, TrustRecord, open, open_or_begin_anew,
    open_or_make, remove_leftovers,
};

use crate::clock::MonotonicClock;
use crate::control::api::{ApiError, ErrorCode};
use crate::data_dir::DataDir;
use crate::{authority_file, identity_file};

/// How long a start waits for the trust file of a killed run to be written anew; a million records take a second or two.
const ANEW_PATIENCE: Duration = Duration::from_secs(5);

/// Every store of a node, and the thread that writes them.
pub struct Stores {
    pub trust: Store<TrustRecord>,
    pub peers: Store<PeerRecord>,
    pub sessions: Store<SessionRecord>,
    drainer: DrainerHandle,
    _lock: DirectoryLock,
}

/// Where the stores and the identity of one node come from.
pub struct Opened {
    pub key: SecretKey,
    pub networks: Arc<Networks>,
    pub stores: Stores,
    pub clock: Arc<MonotonicClock>,
}

/// Opens identity and stores. `lock` stays held until [`Stores::close`].
///
/// # Errors
/// Damage (exit code 8), disk errors, and whatever is wrong with the identity.
pub fn open_all(dir: &DataDir, lock: DirectoryLock) -> Result<Opened, ApiError> {
    open_all_on(dir, lock, |directory| directory)
}

/// As [`open_all`], with the directory behind whatever `medium` puts before it.
///
/// # Errors
/// As [`open_all`].
pub fn open_all_on<M: Medium>(
    dir: &DataDir,
    lock: DirectoryLock,
    medium: impl FnOnce(RealDir) -> M,
) -> Result<Opened, ApiError> {
    let Parts { key, clock, networks, trust, peers, sessions, drainer } = open_parts(dir, medium)?;
    let drainer = DrainerThread::spawn(drainer, clock.clone())
        .map_err(|error| ApiError::new(ErrorCode::Failure, format!("The drainer thread cannot start: {error}.")))?;
    written_anew(&trust);
    Ok(Opened { key, networks, stores: Stores { trust, peers, sessions, drainer, _lock: lock }, clock })
}

/// What was opened, and a drainer that nobody runs yet.
struct Parts<M: Medium> {
    key: SecretKey,
    clock: Arc<MonotonicClock>,
    networks: Arc<Networks>,
    trust: Store<TrustRecord>,
    peers: Store<PeerRecord>,
    sessions: Store<SessionRecord>,
    drainer: Drainer<M>,
}

fn open_parts<M: Medium>(dir: &DataDir, medium: impl FnOnce(RealDir) -> M) -> Result<Parts<M>, ApiError> {
    identity_file::remove_leftovers(dir.path())?;
    let key = identity_file::load(dir.path())?;
    let authorities = authority_file::load_all(dir.path())?;
    let clock = Arc::new(MonotonicClock::start());
    let owner: PeerId = key.peer_id();
    let site = Site::new(*owner.as_bytes(), crate::entropy::bytes()?, clock.clone());
    let mut medium = medium(RealDir::open(dir.path())?);
    remove_leftovers(&mut medium)?;
    let floor = Floor::read(&mut medium, owner.as_bytes())?;
    let trust = open::<TrustRecord, _>(&mut medium, &site, &floor)?;
    let networks = open_or_make::<NetRecord, _>(&mut medium, &site, &floor)?;
    let peers = open_or_begin_anew::<PeerRecord, _>(&mut medium, &site)?;
    let sessions = open_or_begin_anew::<SessionRecord, _>(&mut medium, &site)?;
    let mut drainer = Drainer::new(medium, &site, floor);
    drainer.add(trust.log);
    drainer.add(networks.log);
    drainer.add(peers.log);
    drainer.add(sessions.log);
    let networks = Arc::new(Networks::new(networks.store, key.clone()));
    authorities.into_iter().for_each(|authority| networks.hold_authority(authority));
    Ok(Parts { key, clock, networks, trust: trust.store, peers: peers.store, sessions: sessions.store, drainer })
}

/// Has every file of a directory that the caller has locked written anew, in this thread.
///
/// # Errors
/// As [`open_all`], and whatever the disk says: the files are then as they were, or written anew, each as a whole.
pub fn compact_all(dir: &DataDir) -> Result<(), ApiError> {
    let Parts { clock, mut drainer, .. } = open_parts(dir, |directory| directory)?;
    drainer.compact();
    while drainer.step(clock.now()) == Next::Now {}
    let health = drainer.health().snapshot();
    drainer.stop_switch().stop();
    while drainer.step(clock.now()) != Next::Stopped {}
    match health.last_error {
        Some((file, error)) if health.checkpoint_failures > 0 || health.failures_in_a_row > 0 => {
            Err(ApiError::new(ErrorCode::Failure, format!("{file} could not be written anew: {error}.")))
        }
        _ => Ok(()),
    }
}

/// After a run that was killed, what recovery found counts as durable once it is written anew: a dead process may have
/// left in the page cache what its failed fsync never put on disk. A start waits for that, and goes on without it: what
/// is not confirmed grants nothing, and revokes are in force.
fn written_anew(trust: &Store<TrustRecord>) {
    if let Err(error) = trust.durable().reached_blocking(trust.revision(), ANEW_PATIENCE) {
        tracing::warn!(%error, "the trust file of a killed run is not written anew yet; its last grants do not count");
    }
}

impl Stores {
    /// How the disk is doing.
    pub fn health(&self) -> handfast_trust::HealthCell {
        self.drainer.health_cell()
    }

    /// Writes what is left, ends the drainer, releases the lock.
    ///
    /// # Errors
    /// `NotDurable` when changes could not be written: they are lost.
    pub fn close(self) -> Result<StorageHealth, ApiError> {
        let health = self.drainer.health();
        let report = self.drainer.stop();
        let lost: Vec<FileKind> =
            report.unsaved.iter().map(|unsaved| unsaved.file).filter(|file| !file.safe_to_lose()).collect();
        if lost.is_empty() {
            return Ok(health);
        }
        let files = lost.iter().map(|file| file.file_name()).collect::<Vec<_>>().join(", ");
        Err(ApiError::new(ErrorCode::NotDurable, format!("The last changes of {files} could not be written."))
            .hint("see the errors above; what was acknowledged is on the disk"))
    }
}

//! `store recover`: brings a closed directory back, losing trust rather than revocations.
//!
//! What is kept: every readable revoke and block, ours and theirs, also out of frames whose digest does not hold as far
//! as signatures prove them. What goes: our grants (a revoke of one of them may be what was lost), unless the operator
//! says that they stay. A peer whose grant of ours went is pending again.
//!
//! Disk steps, under the directory's lock, and what a crash leaves after each: the new file is written and synced in
//! `recovering/` (closed as before; the next attempt begins anew); `trust.hf` gets a second name `trust.hf.damaged-N`
//! (the same); the new file takes the name `trust.hf` (open, or closed still for want of a floor: then the next attempt
//! finds everything in it); the floor is written; `recovering/` is removed.
//!
//! Invariants: `trust.hf` is at no moment missing or half there. The new revision is above every revision that was
//! seen or that the floor names. No statement is kept whose signature does not hold.

use std::collections::BTreeMap;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;

use handfast_protocol::{PeerId, SecretKey};
use handfast_trust::{
    DamageFault, DirectoryLock, Drainer, DrainerThread, Edge, FileKind, Floor, Medium, NetRecord, PeerRecord, RealDir,
    Record, Revision, SalvageReport, Salvaged, SessionRecord, Site, StoreError, TrustRecord, Urgency, check, create_at,
    remove_leftovers, salvage, set_aside,
};
use serde::Serialize;

use super::lock::{Patience, acquire};
use super::{Context, Verdict};
use crate::cli::RecoverArgs;
use crate::clock::MonotonicClock;
use crate::control::api::{ApiError, ErrorCode};
use crate::data_dir::{Access, DataDir};
use crate::entropy;
use crate::identity_file;
use crate::output::counted;

/// Where the new file is built.
const STAGING: &str = "recovering";

/// `store recover`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(super) struct RecoverReply {
    /// False when nothing was damaged, and nothing was done.
    recovered: bool,
    revision: u64,
    kept: Kept,
    dropped: Dropped,
    /// New names of the files that were damaged.
    set_aside: Vec<String>,
    unreadable_bytes: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
struct Kept {
    records: u64,
    /// Of ours.
    revokes: u64,
    blocks: u64,
    /// Of ours.
    grants: u64,
    /// Revokes by peers.
    refusals: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
struct Dropped {
    /// Of ours.
    grants: u64,
    /// Statements whose signature did not hold, of anybody.
    unproven: u64,
}

pub(super) async fn recover(context: &Context<'_>, arguments: &RecoverArgs) -> Result<Verdict, ApiError> {
    let directory = context.directory(Access::Own)?;
    let lock = acquire(&directory, "store recover", Patience::Node).await?;
    let reply = recover_directory(&directory, arguments.keep_grants, &lock)?;
    context.output.reply(&reply, recover_text)?;
    Ok(Verdict::Done)
}

fn recover_directory(directory: &DataDir, keep_grants: bool, _lock: &DirectoryLock) -> Result<RecoverReply, ApiError> {
    let key = identity_file::load(directory.path())?;
    let owner = *key.peer_id().as_bytes();
    let mut medium = RealDir::open(directory.path())?;
    let mut reply = RecoverReply::default();
    for aside in [
        set_aside_if_damaged::<PeerRecord>(&mut medium, &owner)?,
        set_aside_if_damaged::<SessionRecord>(&mut medium, &owner)?,
    ] {
        reply.set_aside.extend(aside);
    }
    let floor = Floor::read(&mut medium, &owner);
    reply.recovered = begin_networks_anew(&mut medium, &owner, floor.as_ref().ok(), &mut reply.set_aside)?;
    reply.recovered |= !reply.set_aside.is_empty();
    let report = check::<TrustRecord, _>(&mut medium, Some(&owner), &floor.unwrap_or_default());
    reply.revision = report.revision.0;
    match (report.error, floor) {
        (None, Ok(_)) => return Ok(reply),
        (Some(error), _) => refuse_what_is_not_ours(error)?,
        (None, Err(StoreError::Io { file, error })) => return Err(StoreError::Io { file, error }.into()),
        (None, Err(_)) => {}
    }
    reply.recovered = true;
    let mut found = Found::read(&mut medium, &key)?;
    found.revision = found.revision.max(report.revision).max(floor.unwrap_or_default().trust);
    let records = found.choose(keep_grants, &mut reply);
    reply.revision = build(directory.path(), &owner, &records, found.revision)?.0;
    reply.unreadable_bytes = found.report.unreadable_bytes;
    reply.set_aside.extend(take_place(directory.path(), found.revision)?);
    let floor = Floor { trust: Revision(reply.revision), invites: floor.unwrap_or_default().invites };
    remove_leftovers(&mut medium)?;
    floor.write(&mut medium, &owner)?;
    clear_staging(directory.path())?;
    Ok(reply)
}

/// Losing peers and sessions is safe: the next start makes new files.
fn set_aside_if_damaged<R: Record>(medium: &mut RealDir, owner: &[u8; 32]) -> Result<Option<String>, ApiError> {
    if !medium.exists(R::KIND.file_name())? {
        return Ok(None);
    }
    let report = check::<R, _>(medium, Some(owner), &Floor::default());
    match report.error {
        None => Ok(None),
        Some(StoreError::Damaged { .. }) => Ok(Some(set_aside(medium, R::KIND, report.revision)?)),
        Some(error) => Err(error.into()),
    }
}

/// Without `invites.hf` this node is in no network: nothing that rests on one counts, and nobody is let in, which is
/// safe. Its expulsions come back from the members with the next join. True when it was begun anew.
fn begin_networks_anew(
    medium: &mut RealDir,
    owner: &[u8; 32],
    floor: Option<&Floor>,
    set_aside_names: &mut Vec<String>,
) -> Result<bool, ApiError> {
    let floor = floor.copied().unwrap_or_default();
    let is_there = medium.exists(FileKind::Invites.file_name())?;
    if !is_there && floor.invites == Revision::ZERO {
        return Ok(false);
    }
    let report = check::<NetRecord, _>(medium, Some(owner), &floor);
    let Some(error) = report.error else {
        return Ok(false);
    };
    refuse_what_is_not_ours(error)?;
    if is_there {
        set_aside_names.push(set_aside(medium, FileKind::Invites, report.revision)?);
    }
    // A crash here leaves it missing, which is as closed as before.
    let site = Site::new(*owner, entropy::bytes()?, Arc::new(MonotonicClock::start()));
    create_at::<NetRecord, _>(medium, &site, report.revision.max(floor.invites).next())?;
    Ok(true)
}

/// A file of another node or of a newer version is not damaged, and a file that cannot be read is not lost.
fn refuse_what_is_not_ours(error: StoreError) -> Result<(), ApiError> {
    match error {
        StoreError::Io { .. } => Err(error.into()),
        StoreError::Damaged { fault, .. } => match fault {
            DamageFault::NewerVersion(_)
            | DamageFault::ForeignOwner
            | DamageFault::WrongKind
            | DamageFault::NotAFile => {
                let refused = ApiError::from(error);
                Err(refused
                    .hint("if nothing better is there, move that file away and run `handfast store recover` again"))
            }
            _ => Ok(()),
        },
    }
}

/// What could be read of `trust.hf`.
struct Found {
    me: PeerId,
    records: BTreeMap<PeerId, TrustRecord>,
    report: SalvageReport,
    revision: Revision,
    unproven: u64,
}

impl Found {
    fn read(medium: &mut RealDir, key: &SecretKey) -> Result<Found, ApiError> {
        let mut found = Found {
            me: key.peer_id(),
            records: BTreeMap::new(),
            report: SalvageReport::default(),
            revision: Revision::ZERO,
            unproven: 0,
        };
        if medium.exists(FileKind::Trust.file_name())? {
            found.report = salvage(medium, FileKind::Trust, |salvaged| found.take(&salvaged))?;
            found.revision = found.revision.max(found.report.revision);
        }
        Ok(found)
    }

    fn take(&mut self, salvaged: &Salvaged<'_>) {
        self.revision = self.revision.max(salvaged.revision);
        let Ok(peer) = TrustRecord::decode_key(salvaged.change.key) else { return };
        let record = salvaged.change.record.map(|bytes| TrustRecord::decode(&peer, bytes));
        match record {
            Some(Ok(record)) if salvaged.intact => drop(self.records.insert(peer, record)),
            Some(Ok(record)) => self.take_unproven(peer, record),
            // A removal that may be a flipped bit removes nothing.
            None if salvaged.intact => drop(self.records.remove(&peer)),
            _ => {}
        }
    }

    /// Of a frame that does not hold: revokes with their signatures, and blocks, because a wrong one harms nobody.
    fn take_unproven(&mut self, peer: PeerId, record: TrustRecord) {
        if PeerId::from_bytes(*peer.as_bytes()).is_err() {
            return;
        }
        let ours = record.ours.filter(|edge| edge.is_revoke() && is_proven(edge, self.me, peer));
        let theirs = record.theirs.filter(|edge| edge.is_revoke() && is_proven(edge, peer, self.me));
        if ours.is_none() && theirs.is_none() && !record.blocked {
            return;
        }
        let kept = self.records.entry(peer).or_default();
        kept.blocked |= record.blocked;
        join(&mut kept.ours, ours);
        join(&mut kept.theirs, theirs);
    }

    /// What goes into the new file.
    fn choose(&mut self, keep_grants: bool, reply: &mut RecoverReply) -> BTreeMap<PeerId, TrustRecord> {
        let mut chosen = BTreeMap::new();
        for (peer, mut record) in std::mem::take(&mut self.records) {
            self.drop_unproven(&mut record.ours, self.me, peer);
            self.drop_unproven(&mut record.theirs, peer, self.me);
            if let Some(grant) = record.ours.take_if(|edge| !edge.is_revoke() && !keep_grants) {
                // The next statement must be newer than what peers hold of us.
                record.proven = record.proven.max(grant.terms.epoch);
                record.delivered = None;
                record.rule = None;
                reply.dropped.grants += 1;
            }
            reply.kept.records += 1;
            reply.kept.blocks += u64::from(record.blocked);
            let is =
                |edge: &Option<Edge>, revoke| u64::from(edge.as_ref().is_some_and(|edge| edge.is_revoke() == revoke));
            reply.kept.revokes += is(&record.ours, true);
            reply.kept.grants += is(&record.ours, false);
            reply.kept.refusals += is(&record.theirs, true);
            chosen.insert(peer, record);
        }
        reply.dropped.unproven = self.unproven;
        chosen
    }

    fn drop_unproven(&mut self, edge: &mut Option<Edge>, issuer: PeerId, subject: PeerId) {
        if edge.take_if(|edge| !is_proven(edge, issuer, subject)).is_some() {
            self.unproven += 1;
        }
    }
}

fn is_proven(edge: &Edge, issuer: PeerId, subject: PeerId) -> bool {
    let claim = edge.statement(issuer, subject);
    claim.signed().clone().verify(&issuer, &subject, None).is_ok_and(|verified| verified.digest() == edge.digest)
}

/// The greater statement wins, as in every merge.
fn join(kept: &mut Option<Edge>, other: Option<Edge>) {
    if let Some(other) = other.filter(|other| kept.as_ref().is_none_or(|kept| other.rank() > kept.rank())) {
        *kept = Some(other);
    }
}

/// Writes the new file into the staging directory, and reads it back. Returns the revision that it reaches.
fn build(
    directory: &Path,
    owner: &[u8; 32],
    records: &BTreeMap<PeerId, TrustRecord>,
    after: Revision,
) -> Result<Revision, ApiError> {
    clear_staging(directory)?;
    let staging = directory.join(STAGING);
    DirBuilder::new().mode(0o700).create(&staging).map_err(|error| disk("create", &staging, &error))?;
    let clock = Arc::new(MonotonicClock::start());
    let site = Site::new(*owner, entropy::bytes()?, clock.clone());
    let mut medium = RealDir::open(&staging)?;
    let opened = create_at::<TrustRecord, _>(&mut medium, &site, after.next())?;
    let mut drainer = Drainer::new(medium, &site, Floor::default());
    drainer.add(opened.log);
    let drainer = DrainerThread::spawn(drainer, clock).map_err(|error| disk("write", &staging, &error))?;
    for (peer, record) in records {
        opened.store.write(|table| table.put(*peer, record.clone(), Urgency::Critical));
    }
    let revision = opened.store.revision();
    if let Some(error) = drainer.stop().unsaved.first() {
        let message = format!("The new {} could not be written.", error.file);
        return Err(ApiError::new(ErrorCode::Failure, message).hint("nothing was changed; make room and try again"));
    }
    let report = check::<TrustRecord, _>(&mut RealDir::open(&staging)?, Some(owner), &Floor::default());
    match report.error {
        Some(error) => Err(error.into()),
        None if (report.records, report.revision) == (records.len() as u64, revision) => Ok(revision),
        None => Err(ApiError::new(ErrorCode::Failure, "The new file does not hold what was written to it.")
            .hint("nothing was changed; suspect the disk or the memory of this machine")),
    }
}

/// Gives the damaged file its second name, and its first to the new one. Returns the second, if there was a file.
fn take_place(directory: &Path, revision: Revision) -> Result<Option<String>, ApiError> {
    let trust = directory.join(FileKind::Trust.file_name());
    let mut aside = None;
    for number in 1_u32.. {
        let mut name = format!("{}.damaged-{revision}", FileKind::Trust.file_name());
        if number > 1 {
            name.push_str(&format!("-{number}"));
        }
        match std::fs::hard_link(&trust, directory.join(&name)) {
            Ok(()) => aside = Some(name),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && number < 1_000 => continue,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(disk("link", &trust, &error)),
        }
        break;
    }
    sync(directory)?;
    // rustix's: the directory is synced on both sides of it, as the lint on std's asks.
    rustix::fs::rename(directory.join(STAGING).join(FileKind::Trust.file_name()), &trust)
        .map_err(|errno| disk("rename", &trust, &errno.into()))?;
    sync(directory)?;
    Ok(aside)
}

fn sync(directory: &Path) -> Result<(), ApiError> {
    let synced = std::fs::File::open(directory).and_then(|directory| directory.sync_all());
    synced.map_err(|error| disk("sync", directory, &error))
}

fn clear_staging(directory: &Path) -> Result<(), ApiError> {
    let staging = directory.join(STAGING);
    match std::fs::remove_dir_all(&staging) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(disk("remove", &staging, &error)),
        _ => Ok(()),
    }
}

fn disk(action: &str, path: &Path, error: &io::Error) -> ApiError {
    ApiError::new(ErrorCode::Failure, format!("Cannot {action} {}: {error}.", path.display()))
        .hint("check the disk and the permissions, and run `handfast store recover` again")
}

fn recover_text(reply: &RecoverReply) -> String {
    if !reply.recovered {
        return "Nothing is damaged; nothing was done.".into();
    }
    let mut text = String::new();
    for name in &reply.set_aside {
        text.push_str(&format!("Set aside: {name}\n"));
    }
    if reply.set_aside.iter().any(|name| name.starts_with(FileKind::Invites.file_name())) {
        text.push_str("This node is in no network any more: join again with new tickets, and make new invites.\n");
    }
    let (kept, dropped) = (&reply.kept, &reply.dropped);
    text.push_str(&format!(
        "Kept: {}, {}, {} and {}, in {}.\n",
        counted(kept.revokes, "revoke", "revokes"),
        counted(kept.blocks, "block", "blocks"),
        counted(kept.grants, "grant", "grants"),
        counted(kept.refusals, "refusal by a peer", "refusals by peers"),
        counted(kept.records, "record", "records"),
    ));
    if dropped.grants > 0 {
        let grants = counted(dropped.grants, "grant", "grants");
        text.push_str(&format!(
            "Dropped: {grants} of ours. Those peers are not trusted until you grant again: handfast trust PEER\n"
        ));
    }
    if dropped.unproven > 0 {
        let statements = counted(dropped.unproven, "statement", "statements");
        text.push_str(&format!("Dropped: {statements} without a valid signature.\n"));
    }
    if reply.unreadable_bytes > 0 {
        let bytes = counted(reply.unreadable_bytes, "byte", "bytes");
        text.push_str(&format!(
            "{bytes} could not be read: revokes in there are lost until a peer shows them again.\n"
        ));
    }
    text.push_str("The node can run again: handfast run");
    text
}

#[cfg(test)]
mod tests;

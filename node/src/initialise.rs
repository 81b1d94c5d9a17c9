//! Making a data directory a node's: empty stores, then the identity; adopting a key; finishing a half-made one.
//!
//! Steps, under the directory's lock, and what a crash leaves after each: leftovers removed; `trust.hf` without a
//! record (an unfinished init: made anew for another key the next time); `floor` (the same); `identity.pem` (done). So
//! an identity is never without its stores, and a missing `trust.hf` beside an identity is always damage.
//!
//! Invariant: nothing that holds a record and no identity is ever replaced.
//!
//! Not here: opening what was made (`stores`), the forms of keys (`identity_file`).

use std::io;
use std::path::Path;
use std::sync::Arc;

use handfast_protocol::SecretKey;
use handfast_trust::{
    DirectoryLock, FLOOR_FILE, FileKind, Floor, Medium, RealDir, Revision, Site, StoreError, TrustRecord, check,
    create, remove_leftovers,
};

use crate::clock::MonotonicClock;
use crate::control::api::{ApiError, ErrorCode, InitReply};
use crate::data_dir::DataDir;
use crate::entropy;
use crate::identity_file::{self, IdentityError};

/// Whether there is an identity: then there is nothing to make, whatever state the stores are in.
///
/// # Errors
/// If the system does not say.
pub fn is_complete(directory: &DataDir) -> Result<bool, ApiError> {
    match std::fs::symlink_metadata(directory.identity()) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => {
            let message = format!("Cannot look for {}: {error}.", directory.identity().display());
            Err(ApiError::new(ErrorCode::Failure, message).hint("check the data directory and its permissions"))
        }
    }
}

/// Makes the stores and the identity, adopting the key in the file `identity` if one is given. An identity that is
/// there stays; asking for the one that is there is no error.
///
/// # Errors
/// `Refused` if the directory has another identity, `Damaged` if it has records of an identity that is missing, and
/// whatever is wrong with the key, the directory or the disk.
pub fn initialise(directory: &DataDir, identity: Option<&Path>, _lock: &DirectoryLock) -> Result<InitReply, ApiError> {
    if let Some(present) = present(directory, identity)? {
        return Ok(present);
    }
    identity_file::remove_leftovers(directory.path())?;
    let key = identity.map_or_else(|| Ok(identity_file::generate()?), adopt)?;
    let mut medium = RealDir::open(directory.path())?;
    remove_leftovers(&mut medium)?;
    if !has_stores_of(&mut medium, &key)? {
        make_stores(&mut medium, &key)?;
    }
    identity_file::create(directory.path(), &key)?;
    Ok(reply(directory, &key, true))
}

/// What [`initialise`] says where there is an identity: that needs no lock. `None` where there is none.
///
/// # Errors
/// As [`initialise`].
pub fn present(directory: &DataDir, identity: Option<&Path>) -> Result<Option<InitReply>, ApiError> {
    if !is_complete(directory)? {
        return Ok(None);
    }
    let present = identity_file::load(directory.path())?;
    match identity.map(adopt).transpose()? {
        Some(key) if key.peer_id() != present.peer_id() => Err(has_another(&present)),
        _ => Ok(Some(reply(directory, &present, false))),
    }
}

/// What is wrong with a file that is to be adopted is no damage of ours.
fn adopt(path: &Path) -> Result<SecretKey, ApiError> {
    identity_file::read_key_file(path).map_err(|error| {
        let is_absent = matches!(error, IdentityError::NotFound { .. });
        let mut refused = ApiError::from(error);
        if is_absent {
            refused.hint = Some("name a file with an Ed25519 key: openssl genpkey -algorithm ed25519 -out FILE".into());
        } else if refused.code == ErrorCode::Damaged {
            refused.code = ErrorCode::Failure;
        }
        refused
    })
}

/// Whether stores of this very key are there: an unfinished init with an adopted key, or a directory whose identity
/// comes back. An empty `trust.hf` of another key makes room; records of another key stay, and are an error.
fn has_stores_of(medium: &mut RealDir, key: &SecretKey) -> Result<bool, ApiError> {
    let trust = FileKind::Trust.file_name();
    let has_floor = medium.exists(FLOOR_FILE)?;
    if !medium.exists(trust)? {
        return if has_floor { Err(orphaned(FLOOR_FILE)) } else { Ok(false) };
    }
    let report = check::<TrustRecord, _>(medium, None, &Floor::default());
    if let Some(error) = report.error {
        return Err(match error {
            StoreError::Damaged { .. } => orphaned(trust),
            StoreError::Io { .. } => error.into(),
        });
    }
    let is_ours = report.owner.as_ref() == Some(key.peer_id().as_bytes());
    let is_empty = report.revision == Revision::ZERO && report.records == 0;
    if is_ours && (has_floor || !is_empty) {
        return Ok(true);
    }
    if !is_empty {
        return Err(orphaned(trust));
    }
    // An unfinished init has none: these are networks and tickets of an identity that was lost.
    let invites = FileKind::Invites.file_name();
    if medium.exists(invites)? {
        return Err(orphaned(invites));
    }
    // The floor first: without it, what is left is still an unfinished init.
    if has_floor {
        medium.remove(FLOOR_FILE)?;
    }
    medium.remove(trust)?;
    medium.sync_directory()?;
    Ok(false)
}

fn make_stores(medium: &mut RealDir, key: &SecretKey) -> Result<(), ApiError> {
    let peer = key.peer_id();
    let site = Site::new(*peer.as_bytes(), entropy::bytes()?, Arc::new(MonotonicClock::start()));
    create::<TrustRecord, _>(medium, &site)?;
    Floor::default().write(medium, peer.as_bytes())?;
    Ok(())
}

fn reply(directory: &DataDir, key: &SecretKey, created: bool) -> InitReply {
    InitReply { peer_id: key.peer_id().to_string(), data_dir: directory.path().display().to_string(), created }
}

fn has_another(present: &SecretKey) -> ApiError {
    let message = format!("The data directory has an identity already: {}.", present.peer_id());
    ApiError::new(ErrorCode::Refused, message).hint("an identity is never overwritten: name another --data-dir")
}

fn orphaned(file: &str) -> ApiError {
    let message = format!("{file} is there, but the identity that it belongs to is missing.");
    ApiError::new(ErrorCode::Damaged, message)
        .hint("put identity.pem back, or adopt its backup: handfast init --identity FILE; nothing was changed")
}

#[cfg(test)]
mod tests {
    use handfast_trust::LockOwner;

    use super::*;

    struct Place {
        outer: tempfile::TempDir,
        directory: DataDir,
        lock: DirectoryLock,
    }

    fn place() -> Place {
        let outer = tempfile::tempdir().unwrap();
        let directory = DataDir::create(&outer.path().join("data")).unwrap();
        let owner = LockOwner { pid: 1, role: "test".into(), socket: None };
        let lock = DirectoryLock::try_acquire(directory.path(), &owner).unwrap();
        Place { outer, directory, lock }
    }

    impl Place {
        fn init(&self, identity: Option<&Path>) -> Result<InitReply, ApiError> {
            initialise(&self.directory, identity, &self.lock)
        }

        fn remove(&self, name: &str) {
            std::fs::remove_file(self.directory.path().join(name)).unwrap();
        }

        fn names(&self) -> Vec<String> {
            let entries = std::fs::read_dir(self.directory.path()).unwrap();
            let mut names: Vec<String> =
                entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        }

        /// A key file outside of the directory.
        fn key_file(&self) -> (std::path::PathBuf, String) {
            let key = identity_file::generate().unwrap();
            identity_file::create(self.outer.path(), &key).unwrap();
            (self.outer.path().join("identity.pem"), key.peer_id().to_string())
        }
    }

    #[test]
    fn init_makes_stores_and_identity_once() {
        let place = place();
        let made = place.init(None).unwrap();
        assert!(made.created);
        assert_eq!(place.names(), ["floor", "identity.pem", "lock", "trust.hf"]);
        let again = place.init(None).unwrap();
        assert_eq!((again.created, again.peer_id), (false, made.peer_id));
    }

    #[test]
    fn a_half_made_init_is_finished() {
        for missing in [&["identity.pem"][..], &["identity.pem", "floor"]] {
            let place = place();
            let lost = place.init(None).unwrap().peer_id;
            missing.iter().for_each(|name| place.remove(name));
            let made = place.init(None).unwrap();
            assert!(made.created && made.peer_id != lost);
            let mut medium = RealDir::open(place.directory.path()).unwrap();
            let key = identity_file::load(place.directory.path()).unwrap();
            let owner = *key.peer_id().as_bytes();
            let floor = Floor::read(&mut medium, &owner).unwrap();
            assert!(check::<TrustRecord, _>(&mut medium, Some(&owner), &floor).is_ok(), "after {missing:?}");
        }
    }

    #[test]
    fn a_key_is_adopted_and_never_replaced() {
        let place = place();
        let (file, id) = place.key_file();
        assert_eq!(place.init(Some(&file)).unwrap().peer_id, id);
        assert!(!place.init(Some(&file)).unwrap().created);
        // The identity is lost: its backup brings it back with its stores.
        place.remove("identity.pem");
        assert!(place.init(Some(&file)).unwrap().created);

        let other = self::place();
        other.init(None).unwrap();
        assert_eq!(other.init(Some(&file)).unwrap_err().code, ErrorCode::Refused);
        let absent = other.init(Some(Path::new("/nowhere/key.pem"))).unwrap_err();
        assert_eq!(absent.code, ErrorCode::NotFound);
    }

    #[test]
    fn what_is_left_of_a_lost_identity_stays() {
        let check = |place: &Place, file: &str| {
            let before = place.names();
            let refused = place.init(None).unwrap_err();
            assert_eq!(refused.code, ErrorCode::Damaged);
            assert!(refused.message.starts_with(file), "{refused:?}");
            assert_eq!(place.names(), before);
        };
        let without_trust = place();
        without_trust.init(None).unwrap();
        without_trust.remove("trust.hf");
        without_trust.remove("identity.pem");
        check(&without_trust, "floor");

        let founder = place();
        founder.init(None).unwrap();
        std::fs::File::create_new(founder.directory.path().join("invites.hf")).unwrap();
        founder.remove("identity.pem");
        check(&founder, "invites.hf");

        let damaged = place();
        damaged.init(None).unwrap();
        damaged.remove("identity.pem");
        let file = std::fs::OpenOptions::new().write(true).open(damaged.directory.path().join("trust.hf")).unwrap();
        file.set_len(20).unwrap();
        check(&damaged, "trust.hf");
    }
}

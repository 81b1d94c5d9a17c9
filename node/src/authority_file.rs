//! Keys of networks' authorities: `network-<id>.pem` in the data directory, under the rules of the identity file.
//!
//! Invariant: a file is only taken where its name is its key's: a key that was renamed signs for nobody.
//!
//! A key whose network is not in `invites.hf` is what a crash between the two leaves: it is kept, and does nothing.

use std::path::Path;

use handfast_protocol::{NetworkId, SecretKey};

use crate::control::api::{ApiError, ErrorCode};
use crate::identity_file;

const PREFIX: &str = "network-";
const SUFFIX: &str = ".pem";

/// The name of a network's key file.
pub fn file_name(network: &NetworkId) -> String {
    format!("{PREFIX}{network}{SUFFIX}")
}

/// Writes the key of a new authority. Returns when it is durable.
///
/// # Errors
/// Whatever keeps it from being written.
pub fn create(directory: &Path, authority: &SecretKey) -> Result<(), ApiError> {
    let name = file_name(&authority.network_id());
    Ok(identity_file::create_key_file(directory, &name, authority)?)
}

/// Every authority's key in the directory.
///
/// # Errors
/// Whatever is wrong with the directory or with one of the files.
pub fn load_all(directory: &Path) -> Result<Vec<SecretKey>, ApiError> {
    let unreadable = |error: std::io::Error| {
        let message = format!("Cannot list {}: {error}.", directory.display());
        ApiError::new(ErrorCode::Failure, message).hint("check the data directory and its permissions")
    };
    let mut keys = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let Some(network) = network_of(&path) else {
            continue;
        };
        let key = identity_file::read_key_file(&path)?;
        if key.network_id() != network {
            let message = format!("{} holds the key of another network, {}.", path.display(), key.network_id());
            return Err(ApiError::new(ErrorCode::Failure, message).hint("give the file the name of its own network"));
        }
        keys.push(key);
    }
    Ok(keys)
}

fn network_of(path: &Path) -> Option<NetworkId> {
    path.file_name()?.to_str()?.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?.parse().ok()
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tests put files there as an operator would")]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn keys_come_back_by_their_names_and_under_the_rules_of_the_identity() {
        let outer = tempfile::tempdir().unwrap();
        let (first, second) = (SecretKey::from_seed(&[1; 32]), SecretKey::from_seed(&[2; 32]));
        create(outer.path(), &first).unwrap();
        create(outer.path(), &second).unwrap();
        assert!(create(outer.path(), &first).is_err(), "a key is never overwritten");
        std::fs::write(outer.path().join("network-notes.pem"), "no key").unwrap();
        let mut found: Vec<_> = load_all(outer.path()).unwrap().iter().map(SecretKey::network_id).collect();
        let mut made = vec![first.network_id(), second.network_id()];
        found.sort_unstable();
        made.sort_unstable();
        assert_eq!(found, made);

        let path = outer.path().join(file_name(&first.network_id()));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(load_all(outer.path()).unwrap_err().message.contains("open to other users"));
        std::fs::rename(&path, outer.path().join(file_name(&second.network_id()))).unwrap();
        std::fs::set_permissions(
            outer.path().join(file_name(&second.network_id())),
            std::fs::Permissions::from_mode(0o600),
        )
        .unwrap();
        assert!(load_all(outer.path()).unwrap_err().message.contains("another network"));
    }
}

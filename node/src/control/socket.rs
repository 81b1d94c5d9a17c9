//! The control socket in the file system: made by the node, found by the commands, and named in every reply.
//!
//! Invariant: the caller holds the directory's lock, so that a socket file that is there already is a dead node's. The
//! socket is 0600 in a 0700 directory from its first moment on: nobody can connect between binding and `chmod`,
//! because nobody else can enter the directory.
//!
//! Not here: where it is (`data_dir`), who may speak (`server`).

use std::fs::Permissions;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

use tokio::net::UnixListener;

use super::api::{ApiError, ErrorCode};

/// The header that names the data directory in every reply.
pub const DATA_DIR_HEADER: &str = "handfast-data-dir";

/// Binds the control socket; a dead node's socket makes room. Inside a tokio runtime only.
///
/// # Errors
/// If something else than a socket is there, if its directory is not ours alone, or if the system refuses.
pub fn bind(path: &Path) -> Result<UnixListener, ApiError> {
    let refused = |action: &str, error: io::Error| {
        let message = format!("Cannot {action} the control socket {}: {error}.", path.display());
        ApiError::new(ErrorCode::Failure, message).hint("check the path and its permissions")
    };
    if let Some(parent) = path.parent() {
        prepare_directory(parent)?;
    }
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => {
            std::fs::remove_file(path).map_err(|error| refused("replace", error))?;
        }
        Ok(_) => return Err(refused("bind", io::ErrorKind::AlreadyExists.into())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(refused("inspect", error)),
    }
    let listener = UnixListener::bind(path).map_err(|error| refused("bind", error))?;
    std::fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(|error| refused("protect", error))?;
    Ok(listener)
}

/// Takes the socket's name away when the node stops; still under the lock. Failing is harmless: a dead socket is
/// replaced, and nobody answers there.
pub fn remove(path: &Path) {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::debug!(%error, "the control socket was not removed");
        }
        _ => {}
    }
}

/// The data directory has been inspected; the fallback under `$XDG_RUNTIME_DIR` is made here.
fn prepare_directory(directory: &Path) -> Result<(), ApiError> {
    let refused = |what: String| {
        let hint = format!("the control socket needs a directory of mode 0700 that is yours: {}", directory.display());
        Err(ApiError::new(ErrorCode::Failure, what).hint(hint))
    };
    match std::fs::DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return refused(format!("Cannot create {}: {error}.", directory.display()));
        }
        _ => {}
    }
    let found = std::fs::symlink_metadata(directory);
    let me = rustix::process::geteuid().as_raw();
    match found {
        Ok(found) if found.is_dir() && found.uid() == me && found.mode() & 0o077 == 0 => Ok(()),
        Ok(_) => refused(format!("{} is open to other users.", directory.display())),
        Err(error) => refused(format!("Cannot inspect {}: {error}.", directory.display())),
    }
}

/// A path as a header value: visible ASCII stays, everything else and `%` is percent-encoded.
pub fn header_of(path: &Path) -> String {
    let mut value = String::new();
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'!'..=b'~' if *byte != b'%' => value.push(char::from(*byte)),
            _ => value.push_str(&format!("%{byte:02X}")),
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn private_directory() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        std::fs::set_permissions(directory.path(), Permissions::from_mode(0o700)).unwrap();
        directory
    }

    #[tokio::test]
    async fn a_dead_socket_makes_room_and_nothing_else_does() {
        let directory = private_directory();
        let path = directory.path().join("below/control.sock");
        drop(bind(&path).unwrap());
        let _listener = bind(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(std::fs::metadata(path.parent().unwrap()).unwrap().mode() & 0o7777, 0o700);
        let file = directory.path().join("file");
        std::fs::File::create(&file).unwrap();
        assert_eq!(bind(&file).unwrap_err().code, ErrorCode::Failure);
        assert!(file.exists());
        remove(&path);
        remove(&path);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_directory_of_others_is_refused() {
        let directory = private_directory();
        std::fs::set_permissions(directory.path(), Permissions::from_mode(0o750)).unwrap();
        assert!(bind(&directory.path().join("control.sock")).is_err());
    }

    #[test]
    fn any_path_fits_a_header() {
        let check = |path: &str, expected: &str| assert_eq!(header_of(Path::new(path)), expected);
        check("/var/lib/handfast", "/var/lib/handfast");
        check("/a b/100%\n", "/a%20b/100%25%0A");
        check("/ä", "/%C3%A4");
    }
}

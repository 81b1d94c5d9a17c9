//! The data directory: where it is, and that nobody else can read or replace what is in it.
//!
//! Invariant: a [`DataDir`] was, when it was opened, a directory and not a symlink to one, with no permissions for
//! group or others, and it belonged to this user. The one exception is root, who may look at another user's node
//! through its socket ([`Access::Look`]) and never touches the files.
//!
//! Paths are absolute and have no symlinks in them, so that one directory has one control socket however it is named.
//!
//! Not here: who may write into it (`handfast_trust`'s lock), and what the files hold.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::control::api::ErrorCode;

/// Longest path of a Unix socket: `sun_path` has 108 bytes on Linux, the last one a zero.
pub const SOCKET_PATH_BYTES_MAX: usize = 107;

/// File names in the data directory that this crate reads or writes itself.
pub const IDENTITY_FILE: &str = "identity.pem";
/// The configuration file that is read when no other is named.
pub const CONFIG_FILE: &str = "handfast.toml";
const SOCKET_FILE: &str = "control.sock";

const DIRECTORY_MODE: u32 = 0o700;
/// Permission bits of group and others.
const OTHERS: u32 = 0o077;

/// Why there is no usable data directory.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// Nothing says where it should be.
    #[error("no data directory is given and $HOME is not set")]
    NoHome,
    /// It does not exist.
    #[error("the data directory {} does not exist", path.display())]
    Missing { path: PathBuf },
    /// It is a symlink.
    #[error("the data directory {} is a symlink", path.display())]
    Symlink { path: PathBuf },
    /// It is a file or something else.
    #[error("{} is not a directory", path.display())]
    NotADirectory { path: PathBuf },
    /// Group or others have permissions on it.
    #[error("the data directory {} is open to other users (mode {mode:04o})", path.display())]
    Exposed { path: PathBuf, mode: u32 },
    /// It belongs to somebody else.
    #[error("the data directory {} belongs to user {owner}, not to us (user {me})", path.display())]
    ForeignOwner { path: PathBuf, owner: u32, me: u32 },
    /// The control socket fits neither into it nor into the runtime directory.
    #[error("the path of the control socket under {} is longer than {SOCKET_PATH_BYTES_MAX} bytes", path.display())]
    SocketPathTooLong { path: PathBuf },
    /// The system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io { action: DirAction, path: PathBuf, source: io::Error },
}

/// What was being done to a directory when the system refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DirAction {
    Inspect,
    Create,
    Sync,
}

impl std::fmt::Display for DirAction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            DirAction::Inspect => "inspect",
            DirAction::Create => "create",
            DirAction::Sync => "sync",
        })
    }
}

impl DataDirError {
    /// What a caller of the program sees: always exit code 1.
    pub fn code(&self) -> ErrorCode {
        ErrorCode::Failure
    }

    /// What to do about it.
    pub fn hint(&self) -> String {
        match self {
            DataDirError::NoHome => "give --data-dir, or set HANDFAST_DATA_DIR".into(),
            DataDirError::Missing { .. } => "`handfast init` makes one; --data-dir names another".into(),
            DataDirError::Symlink { .. } => "name the directory that it points to".into(),
            DataDirError::NotADirectory { .. } => "name a directory with --data-dir".into(),
            DataDirError::Exposed { path, .. } => {
                format!("see who could have read it, then: chmod 700 {}", path.display())
            }
            DataDirError::ForeignOwner { .. } => "run as its owner, or name another with --data-dir".into(),
            DataDirError::SocketPathTooLong { .. } => "use a shorter path, or set XDG_RUNTIME_DIR".into(),
            DataDirError::Io { .. } => "check the path and its permissions".into(),
        }
    }
}

/// Where the data directory should be: `flag`, else `$HANDFAST_DATA_DIR`, `$STATE_DIRECTORY` (systemd),
/// `$XDG_DATA_HOME/handfast`, `~/.local/share/handfast`. Empty variables count as unset; so does a relative
/// `XDG_DATA_HOME`, as its specification asks. `environment` is [`std::env::var_os`] outside tests.
///
/// # Errors
/// [`DataDirError::NoHome`] if nothing says where.
pub fn resolve(flag: Option<&Path>, environment: impl Fn(&str) -> Option<OsString>) -> Result<PathBuf, DataDirError> {
    let variable = |name: &str| environment(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    flag.map(Path::to_path_buf)
        .or_else(|| variable("HANDFAST_DATA_DIR"))
        .or_else(|| variable("STATE_DIRECTORY").and_then(|list| first_of(&list)))
        .or_else(|| variable("XDG_DATA_HOME").filter(|home| home.is_absolute()).map(|home| home.join("handfast")))
        .or_else(|| variable("HOME").map(|home| home.join(".local/share/handfast")))
        .ok_or(DataDirError::NoHome)
}

/// systemd separates several state directories with colons.
fn first_of(list: &Path) -> Option<PathBuf> {
    let first = list.as_os_str().as_bytes().split(|byte| *byte == b':').next()?;
    Some(PathBuf::from(std::ffi::OsStr::from_bytes(first)))
}

/// What the caller is going to do with the directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Read and write its files: only for its owner.
    Own,
    /// Talk to the node through its socket: for its owner and for root.
    Look,
}

/// A data directory that was found in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataDir {
    path: PathBuf,
    foreign: bool,
}

impl DataDir {
    /// Opens a directory that is there.
    ///
    /// # Errors
    /// [`DataDirError::Missing`] if it is not there; the others as their names say.
    pub fn open(path: &Path, access: Access) -> Result<DataDir, DataDirError> {
        let inspect = |source| io_error(DirAction::Inspect, path, source);
        let metadata = std::fs::symlink_metadata(path).map_err(inspect)?;
        let path = path.to_path_buf();
        if metadata.is_symlink() {
            return Err(DataDirError::Symlink { path });
        }
        if !metadata.is_dir() {
            return Err(DataDirError::NotADirectory { path });
        }
        let me = rustix::process::geteuid().as_raw();
        let foreign = metadata.uid() != me;
        if foreign && !(access == Access::Look && me == 0) {
            return Err(DataDirError::ForeignOwner { path, owner: metadata.uid(), me });
        }
        if metadata.mode() & OTHERS != 0 {
            return Err(DataDirError::Exposed { path, mode: metadata.mode() & 0o7777 });
        }
        let path = std::fs::canonicalize(&path).map_err(inspect)?;
        Ok(DataDir { path, foreign })
    }

    /// Opens the directory, and makes it (0700, durably) with its parents if it is not there.
    ///
    /// # Errors
    /// As [`DataDir::open`] for [`Access::Own`].
    pub fn create(path: &Path) -> Result<DataDir, DataDirError> {
        let absolute = std::path::absolute(path).map_err(|source| io_error(DirAction::Inspect, path, source))?;
        make_directories(&absolute)?;
        DataDir::open(path, Access::Own)
    }

    /// The absolute path without symlinks.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// True when it belongs to another user and we are root, looking.
    pub fn is_foreign(&self) -> bool {
        self.foreign
    }

    /// Where the identity is.
    pub fn identity(&self) -> PathBuf {
        self.path.join(IDENTITY_FILE)
    }

    /// Where the configuration is unless another file is named.
    pub fn config(&self) -> PathBuf {
        self.path.join(CONFIG_FILE)
    }

    /// Where the control socket is: in the directory, or if that path is too long for a socket address in
    /// `$XDG_RUNTIME_DIR/handfast` under a name that only this directory has.
    ///
    /// # Errors
    /// [`DataDirError::SocketPathTooLong`] if neither will do.
    pub fn control_socket(&self, environment: impl Fn(&str) -> Option<OsString>) -> Result<PathBuf, DataDirError> {
        let within = self.path.join(SOCKET_FILE);
        if fits(&within) {
            return Ok(within);
        }
        environment("XDG_RUNTIME_DIR")
            .map(PathBuf::from)
            .filter(|runtime| runtime.is_absolute())
            .map(|runtime| runtime.join("handfast").join(self.socket_name()))
            .filter(|socket| fits(socket))
            .ok_or_else(|| DataDirError::SocketPathTooLong { path: self.path.clone() })
    }

    /// 128 bits of BLAKE3 of the path: nobody has to guess them, they only must not collide.
    fn socket_name(&self) -> String {
        let mut hash = blake3::hash(self.path.as_os_str().as_bytes()).to_hex().to_string();
        hash.truncate(32);
        hash.push_str(".sock");
        hash
    }
}

fn fits(socket: &Path) -> bool {
    socket.as_os_str().len() <= SOCKET_PATH_BYTES_MAX
}

/// Makes what is missing of `path`, each level with mode 0700, and syncs the directory that got the new name: a key
/// that is durable in a directory that is not would be lost with it.
fn make_directories(path: &Path) -> Result<(), DataDirError> {
    let missing: Vec<&Path> = path.ancestors().take_while(|level| is_absent(level)).collect();
    for level in missing.into_iter().rev() {
        match std::fs::DirBuilder::new().mode(DIRECTORY_MODE).create(level) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
            Err(source) => return Err(io_error(DirAction::Create, level, source)),
        }
        if let Some(parent) = level.parent() {
            std::fs::File::open(parent)
                .and_then(|directory| directory.sync_all())
                .map_err(|source| io_error(DirAction::Sync, parent, source))?;
        }
    }
    Ok(())
}

/// Only "not found" is absent: what cannot be looked at is left for the error of what follows.
fn is_absent(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

fn io_error(action: DirAction, path: &Path, source: io::Error) -> DataDirError {
    let path = path.to_path_buf();
    match source.kind() {
        io::ErrorKind::NotFound if action == DirAction::Inspect => DataDirError::Missing { path },
        io::ErrorKind::NotADirectory => DataDirError::NotADirectory { path },
        _ => DataDirError::Io { action, path, source },
    }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn environment<'a>(pairs: &'a [(&'a str, &'a str)]) -> impl Fn(&str) -> Option<OsString> + 'a {
        move |name| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value))
    }

    #[test]
    fn the_first_that_says_where_wins() {
        let all = [
            ("HANDFAST_DATA_DIR", "/from/variable"),
            ("STATE_DIRECTORY", "/from/systemd:/second"),
            ("XDG_DATA_HOME", "/from/xdg"),
            ("HOME", "/home/me"),
        ];
        let check = |flag: Option<&str>, skip: usize, expected: &str| {
            let found = resolve(flag.map(Path::new), environment(&all[skip..])).unwrap();
            assert_eq!(found, Path::new(expected));
        };
        check(Some("given"), 0, "given");
        check(None, 0, "/from/variable");
        check(None, 1, "/from/systemd");
        check(None, 2, "/from/xdg/handfast");
        check(None, 3, "/home/me/.local/share/handfast");
        assert!(matches!(resolve(None, environment(&[])), Err(DataDirError::NoHome)));
        let useless = [("HANDFAST_DATA_DIR", ""), ("XDG_DATA_HOME", "relative"), ("HOME", "/home/me")];
        assert_eq!(resolve(None, environment(&useless)).unwrap(), Path::new("/home/me/.local/share/handfast"));
    }

    #[test]
    fn a_new_directory_is_ours_alone() {
        let outer = tempfile::tempdir().unwrap();
        let path = outer.path().join("a/b/data");
        assert!(matches!(DataDir::open(&path, Access::Own), Err(DataDirError::Missing { .. })));
        let made = DataDir::create(&path).unwrap();
        assert_eq!(std::fs::metadata(made.path()).unwrap().mode() & 0o7777, 0o700);
        assert_eq!(DataDir::create(&path).unwrap(), made);
        assert_eq!(DataDir::open(&path, Access::Look).unwrap(), made);
        assert!(!made.is_foreign());
    }

    #[test]
    fn what_others_could_read_or_replace_is_refused() {
        let outer = tempfile::tempdir().unwrap();
        let path = outer.path().join("data");
        DataDir::create(&path).unwrap();
        for mode in [0o701, 0o710, 0o750, 0o755, 0o777] {
            std::fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            let refused = DataDir::create(&path).unwrap_err();
            assert!(matches!(refused, DataDirError::Exposed { mode: found, .. } if found == mode), "{refused}");
            assert!(refused.hint().contains("chmod 700"));
        }
        std::fs::set_permissions(&path, Permissions::from_mode(0o700)).unwrap();
        let link = outer.path().join("link");
        symlink(&path, &link).unwrap();
        assert!(matches!(DataDir::create(&link), Err(DataDirError::Symlink { .. })));
        let file = outer.path().join("file");
        std::fs::File::create(&file).unwrap();
        assert!(matches!(DataDir::create(&file), Err(DataDirError::NotADirectory { .. })));
        assert!(matches!(DataDir::create(&file.join("below")), Err(DataDirError::NotADirectory { .. })));
        let dangling = outer.path().join("dangling");
        symlink(outer.path().join("nowhere"), &dangling).unwrap();
        assert!(matches!(DataDir::create(&dangling), Err(DataDirError::Symlink { .. })));
    }

    #[test]
    fn a_foreign_directory_is_refused() {
        // Everybody but root meets one at `/`; root makes one, and may look at it.
        let me = rustix::process::geteuid();
        let outer = tempfile::tempdir().unwrap();
        let path = if me.is_root() { outer.path().join("data") } else { PathBuf::from("/") };
        if me.is_root() {
            DataDir::create(&path).unwrap();
            std::os::unix::fs::chown(&path, Some(65_534), None).unwrap();
            assert!(DataDir::open(&path, Access::Look).unwrap().is_foreign());
        } else {
            assert!(matches!(DataDir::open(&path, Access::Look), Err(DataDirError::ForeignOwner { .. })));
        }
        assert!(matches!(DataDir::open(&path, Access::Own), Err(DataDirError::ForeignOwner { .. })));
    }

    #[test]
    fn a_socket_that_does_not_fit_goes_to_the_runtime_directory() {
        let outer = tempfile::tempdir().unwrap();
        let short = DataDir::create(&outer.path().join("data")).unwrap();
        assert_eq!(short.control_socket(environment(&[])).unwrap(), short.path().join("control.sock"));

        let long = DataDir::create(&outer.path().join("l".repeat(SOCKET_PATH_BYTES_MAX))).unwrap();
        let refused = long.control_socket(environment(&[]));
        assert!(matches!(refused, Err(DataDirError::SocketPathTooLong { .. })));
        let runtime = [("XDG_RUNTIME_DIR", "/run/user/1000")];
        let socket = long.control_socket(environment(&runtime)).unwrap();
        assert!(socket.starts_with("/run/user/1000/handfast") && fits(&socket), "{socket:?}");
        let other = DataDir::create(&outer.path().join("m".repeat(SOCKET_PATH_BYTES_MAX))).unwrap();
        assert_ne!(other.control_socket(environment(&runtime)).unwrap(), socket);
    }
}

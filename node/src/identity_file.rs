//! The identity on disk: one Ed25519 secret key as PKCS#8 PEM (RFC 5958, RFC 8410) in `identity.pem`.
//!
//! Both versions are read; version 1 is written, because OpenSSL 3.0 refuses version 2 (which adds the public key).
//!
//! Disk steps of [`create`] and what a crash leaves after each: temp file made (O_EXCL, 0600), written, synced: a
//! leftover that [`remove_leftovers`] takes away; linked as `identity.pem` (never replacing): the identity or nothing;
//! directory synced: the identity; temp name removed.
//!
//! Invariants: a key is only taken from a regular file of ours that nobody else has permissions on. The secret is
//! zeroed wherever this file held it.
//!
//! Not here: which file is adopted and when one is made (`init`), and who may write (the data directory's lock).

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use ed25519_dalek::SigningKey;
use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::pkcs8::{self, DecodePrivateKey, EncodePrivateKey, KeypairBytes, spki};
use handfast_protocol::SecretKey;
use rand::TryRng;
use rand::rngs::SysRng;
use rustix::fs::OFlags;
use rustix::io::Errno;
use zeroize::Zeroizing;

use crate::control::api::ErrorCode;
use crate::data_dir::IDENTITY_FILE;

/// Longest key file that is read; an RSA key of 16,384 bits fits and gets its own error.
const KEY_FILE_BYTES_MAX: u64 = 16 * 1024;
const TEMP_PREFIX: &str = ".identity-";
const TEMP_SUFFIX: &str = ".tmp";
const OTHERS: u32 = 0o077;

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// There is no such file.
    #[error("{} does not exist", path.display())]
    NotFound { path: PathBuf },
    /// There is one already; it was not touched.
    #[error("{} exists already and was left alone", path.display())]
    AlreadyExists { path: PathBuf },
    /// It is a symlink.
    #[error("{} is a symlink", path.display())]
    Symlink { path: PathBuf },
    /// It is a directory or something else.
    #[error("{} is not a file", path.display())]
    NotAFile { path: PathBuf },
    /// Group or others have permissions on it.
    #[error("{} is open to other users (mode {mode:04o}): the key in it may be known to others", path.display())]
    Exposed { path: PathBuf, mode: u32 },
    /// It belongs to somebody else.
    #[error("{} belongs to user {owner}, not to us (user {me})", path.display())]
    ForeignOwner { path: PathBuf, owner: u32, me: u32 },
    /// It holds something else than one Ed25519 secret key as PKCS#8 PEM.
    #[error("{} holds {fault}", path.display())]
    Unusable { path: PathBuf, fault: KeyFault },
    /// The system has no random bytes.
    #[error("the system gives no random bytes")]
    NoRandomness,
    /// The system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io { action: KeyAction, path: PathBuf, source: io::Error },
}

/// What a key file holds instead of an Ed25519 secret key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyFault {
    #[error("no PEM block that we know; expected BEGIN PRIVATE KEY")]
    NotPem,
    #[error("a key that is encrypted with a passphrase")]
    Encrypted,
    #[error("a key in OpenSSH's own format")]
    OpenSsh,
    #[error("a public key or certificate, not a secret key")]
    Public,
    #[error("an RSA key, not an Ed25519 key")]
    Rsa,
    #[error("a key on a NIST or other Weierstrass curve, not an Ed25519 key")]
    EllipticCurve,
    #[error("an Ed448 key, not an Ed25519 key")]
    Ed448,
    #[error("an X25519 key, which can agree on keys but not sign; not an Ed25519 key")]
    X25519,
    #[error("a key of a kind that we do not know, not an Ed25519 key")]
    OtherKind,
    #[error("a PKCS#8 block that is damaged, or whose public half is another key's")]
    Malformed,
    #[error("more than {KEY_FILE_BYTES_MAX} bytes")]
    TooLong,
}

/// What was being done to a key file when the system refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyAction {
    Open,
    Read,
    Create,
    Write,
    Sync,
    Link,
    List,
    Remove,
}

impl std::fmt::Display for KeyAction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            KeyAction::Open => "open",
            KeyAction::Read => "read",
            KeyAction::Create => "create",
            KeyAction::Write => "write",
            KeyAction::Sync => "sync",
            KeyAction::Link => "give its name to",
            KeyAction::List => "list",
            KeyAction::Remove => "remove",
        })
    }
}

impl IdentityError {
    /// What a caller of the program sees when this happens to `identity.pem`. What is wrong with a file that is to be
    /// adopted is never damage of ours: there it is [`ErrorCode::Failure`].
    pub fn code(&self) -> ErrorCode {
        match self {
            IdentityError::Unusable { .. } => ErrorCode::Damaged,
            IdentityError::NotFound { .. } => ErrorCode::NotFound,
            _ => ErrorCode::Failure,
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> String {
        match self {
            IdentityError::NotFound { .. } => "`handfast init` makes an identity".into(),
            IdentityError::AlreadyExists { .. } => "`handfast id` shows the identity that is there".into(),
            IdentityError::Symlink { .. } => "name the file that it points to".into(),
            IdentityError::NotAFile { .. } => "name a file".into(),
            IdentityError::Exposed { path, .. } => {
                format!("if nobody else has read it: chmod 600 {}; otherwise use another key", path.display())
            }
            IdentityError::ForeignOwner { .. } => "run as its owner".into(),
            IdentityError::Unusable { fault, .. } => match fault {
                KeyFault::Encrypted => "decrypt it: openssl pkey -in FILE -out PLAIN".into(),
                KeyFault::Malformed | KeyFault::NotPem | KeyFault::TooLong => {
                    "put the file back from a backup; without its key nobody can speak for this identity".into()
                }
                _ => "make one with: openssl genpkey -algorithm ed25519 -out FILE".into(),
            },
            IdentityError::NoRandomness => "try again when the system has started completely".into(),
            IdentityError::Io { .. } => "check the path, its permissions and the disk".into(),
        }
    }
}

/// A new secret key from the system's random bytes.
///
/// # Errors
/// [`IdentityError::NoRandomness`].
pub fn generate() -> Result<SecretKey, IdentityError> {
    let mut seed = Zeroizing::new([0; 32]);
    SysRng.try_fill_bytes(seed.as_mut()).map_err(|_| IdentityError::NoRandomness)?;
    Ok(SecretKey::from_seed(&seed))
}

/// Reads the identity of a data directory.
///
/// # Errors
/// [`IdentityError::NotFound`] if there is none; the others mean that there is one and it cannot be used.
pub fn load(directory: &Path) -> Result<SecretKey, IdentityError> {
    read_key_file(&directory.join(IDENTITY_FILE))
}

/// Reads a secret key from any file, under the same rules.
///
/// # Errors
/// As [`load`].
pub fn read_key_file(path: &Path) -> Result<SecretKey, IdentityError> {
    let mut file = open_private(path)?;
    // As large as it gets: a string that grows would leave copies of the key behind.
    let mut text = Zeroizing::new(String::with_capacity(KEY_FILE_BYTES_MAX as usize));
    (&file).take(KEY_FILE_BYTES_MAX).read_to_string(&mut text).map_err(|source| match source.kind() {
        io::ErrorKind::InvalidData => unusable(path, KeyFault::NotPem),
        _ => io_error(KeyAction::Read, path, source),
    })?;
    let rest = file.read(&mut [0]).map_err(|source| io_error(KeyAction::Read, path, source))?;
    if rest != 0 {
        return Err(unusable(path, KeyFault::TooLong));
    }
    parse(&text).map_err(|fault| unusable(path, fault))
}

/// Writes the identity of a data directory that has none. Returns when it is durable.
///
/// # Errors
/// [`IdentityError::AlreadyExists`] if there is one, which then stays as it is.
pub fn create(directory: &Path, key: &SecretKey) -> Result<(), IdentityError> {
    create_key_file(directory, IDENTITY_FILE, key)
}

/// Writes a secret key into a file that is not there yet, under the same rules.
///
/// # Errors
/// As [`create`].
pub fn create_key_file(directory: &Path, name: &str, key: &SecretKey) -> Result<(), IdentityError> {
    let path = directory.join(name);
    let temp = temp_path(directory)?;
    let linked = write_temp(&temp, key).and_then(|()| link(&temp, &path)).and_then(|()| sync_directory(directory));
    let removed = std::fs::remove_file(&temp);
    linked?;
    removed.map_err(|source| io_error(KeyAction::Remove, &temp, source))
}

/// Takes away what interrupted [`create`] calls left. Only under the directory's lock: a living one would be robbed.
/// Returns how many there were.
///
/// # Errors
/// [`IdentityError::Io`]; whoever starts may log it and go on, leftovers never block a write.
pub fn remove_leftovers(directory: &Path) -> Result<usize, IdentityError> {
    let list = |source| io_error(KeyAction::List, directory, source);
    let mut removed = 0;
    for entry in std::fs::read_dir(directory).map_err(list)? {
        let entry = entry.map_err(list)?;
        let name = entry.file_name();
        let is_temp = name.to_str().is_some_and(|name| name.starts_with(TEMP_PREFIX) && name.ends_with(TEMP_SUFFIX));
        if is_temp {
            let path = entry.path();
            std::fs::remove_file(&path).map_err(|source| io_error(KeyAction::Remove, &path, source))?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// Non-blocking, so that a FIFO in its place cannot hang the opening. What was opened is inspected, not its name.
fn open_private(path: &Path) -> Result<File, IdentityError> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let open = OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path);
    let file = open.map_err(|source| io_error(KeyAction::Open, path, source))?;
    let metadata = file.metadata().map_err(|source| io_error(KeyAction::Open, path, source))?;
    let path = path.to_path_buf();
    if !metadata.is_file() {
        return Err(IdentityError::NotAFile { path });
    }
    let me = rustix::process::geteuid().as_raw();
    if metadata.uid() != me {
        return Err(IdentityError::ForeignOwner { path, owner: metadata.uid(), me });
    }
    if metadata.mode() & OTHERS != 0 {
        return Err(IdentityError::Exposed { path, mode: metadata.mode() & 0o7777 });
    }
    Ok(file)
}

fn parse(text: &str) -> Result<SecretKey, KeyFault> {
    let label = text.split_once("-----BEGIN ").and_then(|(_, rest)| rest.split_once("-----")).map(|(label, _)| label);
    match label {
        Some("PRIVATE KEY") => SigningKey::from_pkcs8_pem(text).map(SecretKey::from).map_err(fault_of),
        Some("ENCRYPTED PRIVATE KEY") => Err(KeyFault::Encrypted),
        Some("OPENSSH PRIVATE KEY") => Err(KeyFault::OpenSsh),
        Some("RSA PRIVATE KEY") => Err(KeyFault::Rsa),
        Some("EC PRIVATE KEY" | "EC PARAMETERS") => Err(KeyFault::EllipticCurve),
        Some("PUBLIC KEY" | "CERTIFICATE") => Err(KeyFault::Public),
        _ => Err(KeyFault::NotPem),
    }
}

fn fault_of(error: pkcs8::Error) -> KeyFault {
    let pkcs8::Error::PublicKey(spki::Error::OidUnknown { oid }) = error else { return KeyFault::Malformed };
    match oid.to_string().as_str() {
        "1.2.840.113549.1.1.1" | "1.2.840.113549.1.1.10" => KeyFault::Rsa,
        "1.2.840.10045.2.1" => KeyFault::EllipticCurve,
        "1.3.101.110" => KeyFault::X25519,
        "1.3.101.113" => KeyFault::Ed448,
        _ => KeyFault::OtherKind,
    }
}

/// A name that no other attempt has.
fn temp_path(directory: &Path) -> Result<PathBuf, IdentityError> {
    let mut random = [0; 8];
    SysRng.try_fill_bytes(&mut random).map_err(|_| IdentityError::NoRandomness)?;
    Ok(directory.join(format!("{TEMP_PREFIX}{:016x}{TEMP_SUFFIX}", u64::from_le_bytes(random))))
}

fn write_temp(temp: &Path, key: &SecretKey) -> Result<(), IdentityError> {
    let version_1 = KeypairBytes { secret_key: key.signing_key().to_bytes(), public_key: None };
    let pem = version_1.to_pkcs8_pem(LineEnding::LF).map_err(|_| unusable(temp, KeyFault::Malformed))?;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(temp)
        .map_err(|source| io_error(KeyAction::Create, temp, source))?;
    file.write_all(pem.as_bytes()).map_err(|source| io_error(KeyAction::Write, temp, source))?;
    file.sync_all().map_err(|source| io_error(KeyAction::Sync, temp, source))
}

fn link(temp: &Path, path: &Path) -> Result<(), IdentityError> {
    std::fs::hard_link(temp, path).map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => IdentityError::AlreadyExists { path: path.to_path_buf() },
        _ => io_error(KeyAction::Link, path, source),
    })
}

fn sync_directory(directory: &Path) -> Result<(), IdentityError> {
    let sync = File::open(directory).and_then(|directory| directory.sync_all());
    sync.map_err(|source| io_error(KeyAction::Sync, directory, source))
}

fn unusable(path: &Path, fault: KeyFault) -> IdentityError {
    IdentityError::Unusable { path: path.to_path_buf(), fault }
}

fn io_error(action: KeyAction, path: &Path, source: io::Error) -> IdentityError {
    let path = path.to_path_buf();
    match Errno::from_io_error(&source) {
        Some(Errno::NOENT) if action == KeyAction::Open => IdentityError::NotFound { path },
        // With O_NOFOLLOW this is the file itself.
        Some(Errno::LOOP) if action == KeyAction::Open => IdentityError::Symlink { path },
        _ => IdentityError::Io { action, path, source },
    }
}

#[cfg(test)]
mod tests;

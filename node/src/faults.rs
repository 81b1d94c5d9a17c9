//! Every error that can end a command, as what a caller of the program sees: one table to codes and hints.
//!
//! The messages are the errors' own, as sentences; nothing is added here but what to do about it.

use handfast_trust::{DamageFault, DiskError, DiskErrorKind, LockError, LockOwner, StoreError};

use crate::config::ConfigError;
use crate::control::api::{ApiError, ErrorCode};
use crate::data_dir::DataDirError;
use crate::identity_file::IdentityError;

impl From<&DataDirError> for ApiError {
    fn from(error: &DataDirError) -> ApiError {
        ApiError::new(error.code(), sentence(error)).hint(error.hint())
    }
}

impl From<&IdentityError> for ApiError {
    fn from(error: &IdentityError) -> ApiError {
        ApiError::new(error.code(), sentence(error)).hint(error.hint())
    }
}

impl From<&ConfigError> for ApiError {
    fn from(error: &ConfigError) -> ApiError {
        ApiError::new(error.code(), sentence(error)).hint(error.hint())
    }
}

/// By value too, so that `?` does.
macro_rules! by_value {
    ($($error:ty),*) => {$(
        impl From<$error> for ApiError {
            fn from(error: $error) -> ApiError {
                ApiError::from(&error)
            }
        }
    )*};
}

by_value!(DataDirError, IdentityError, ConfigError, StoreError, DiskError);

/// An error as a sentence of its own: a capital where a word begins it, and a full stop.
fn sentence(error: &impl std::fmt::Display) -> String {
    let text = error.to_string();
    let mut characters = text.chars();
    let is_name = text.split(' ').next().is_some_and(|word| word.contains(['.', '/', '$', ':', '`']));
    let mut sentence: String = match characters.next() {
        Some(first) if !is_name => first.to_uppercase().chain(characters).collect(),
        _ => text,
    };
    sentence.push('.');
    sentence
}

impl From<LockError> for ApiError {
    fn from(error: LockError) -> ApiError {
        let (code, hint) = match &error {
            LockError::Held(owner) => (ErrorCode::InUse, hint_about(owner)),
            LockError::Unsupported => (ErrorCode::Failure, "put the data directory on a local file system".into()),
            LockError::Io(_) => (ErrorCode::Failure, "check the data directory, its permissions and the disk".into()),
        };
        ApiError::new(code, sentence(&error)).hint(hint)
    }
}

fn hint_about(owner: &LockOwner) -> String {
    match owner.pid {
        0 => "wait for it to end, or find it with: fuser lock (in the data directory)".into(),
        pid => format!("wait for it to end, or stop it: kill {pid}"),
    }
}

impl From<&StoreError> for ApiError {
    fn from(error: &StoreError) -> ApiError {
        // It begins with the name of a file: no capital. Damage has its remedy in it; the hint is what else to know.
        let message = format!("{error}.");
        let hint = match error {
            StoreError::Damaged { fault: DamageFault::NewerVersion(_), .. } => {
                "the file was not changed; nobody is trusted"
            }
            StoreError::Damaged { .. } => {
                "nothing was changed, and nobody is trusted; `handfast store check` looks at every file"
            }
            // A refusal is not absence: the store is there, cannot be read, and is closed all the same.
            StoreError::Io { error, .. } => hint_about_disk(error),
        };
        ApiError::new(ErrorCode::Damaged, message).hint(hint)
    }
}

impl From<&DiskError> for ApiError {
    fn from(error: &DiskError) -> ApiError {
        ApiError::new(ErrorCode::Failure, sentence(error)).hint(hint_about_disk(error))
    }
}

fn hint_about_disk(error: &DiskError) -> &'static str {
    match error.kind {
        DiskErrorKind::Denied | DiskErrorKind::ForeignOwner => "run as the owner of the data directory",
        DiskErrorKind::Exposed => "see who could have read it, then: chmod 600 for the file, 700 for the directory",
        DiskErrorKind::NoSpace | DiskErrorKind::Quota => "make room on the disk",
        DiskErrorKind::ReadOnly => "the file system must be writable",
        _ => "check the data directory, its permissions and the disk",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_has_its_exit_code_and_a_hint() {
        let check = |error: ApiError, code: u8, says: &str| {
            assert_eq!(error.code.exit_code(), code, "{error:?}");
            let whole = format!("{} {}", error.message, error.hint.unwrap());
            assert!(whole.contains(says), "{whole}");
        };
        let owner = LockOwner { pid: 41, role: "node".into(), socket: None };
        check(LockError::Held(owner).into(), 7, "kill 41");
        check(LockError::Unsupported.into(), 1, "local file system");
        check(DataDirError::NoHome.into(), 1, "--data-dir");
        let damaged = StoreError::Damaged { file: "trust.hf", offset: 96, fault: DamageFault::FrameDigest };
        check(damaged.into(), 8, "at byte 96");
        let error = DiskError::new(handfast_trust::DiskOp::Open, DiskErrorKind::Denied);
        check(StoreError::Io { file: "trust.hf", error }.into(), 8, "run as the owner");
        check(error.into(), 1, "permission denied");
    }
}

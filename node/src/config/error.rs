//! Where values come from, and what is wrong with one.

use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::control::api::ErrorCode;

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    Default,
    File { path: PathBuf, line: usize },
    Environment { variable: String },
    Flag { typed: &'static str },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File { path, line } => write!(f, "{}:{line}", path.display()),
            Origin::Environment { variable } => write!(f, "${variable}"),
            Origin::Flag { typed } => f.write_str(typed),
        }
    }
}

/// Why there is no configuration. Fatal: a node never runs with a guess.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file is absent, too large, not UTF-8 or not ours to read.
    #[error("cannot read the configuration {}: {source}", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    /// The file is no TOML.
    #[error("{origin}: {}", source.message())]
    Syntax { origin: Origin, source: Box<toml::de::Error> },
    /// There is no such key.
    #[error("{origin}: there is no setting `{key}`")]
    UnknownKey { origin: Origin, key: String },
    /// The value is of the wrong type or out of its range.
    #[error("{origin}: `{key}` cannot be {found}; allowed: {allowed}")]
    BadValue { origin: Origin, key: &'static str, found: String, allowed: String },
    /// Two values that do not go together.
    #[error(
        "{origin}: `limits.keep_alive_s` ({keep_alive_s}) must be less than half of `limits.idle_timeout_s` \
         ({idle_timeout_s})"
    )]
    KeepAliveTooLong { origin: Origin, keep_alive_s: u64, idle_timeout_s: u64 },
}

impl ConfigError {
    /// What a caller of the program sees.
    pub fn code(&self) -> ErrorCode {
        match self {
            ConfigError::Unreadable { .. } => ErrorCode::Failure,
            _ => ErrorCode::Usage,
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            ConfigError::Unreadable { .. } => "check the path given with --config or HANDFAST_CONFIG",
            ConfigError::Syntax { .. } => "the file is TOML; config/handfast.toml shows every setting",
            _ => "`handfast config show` lists every setting with its origin",
        }
    }

    pub(super) fn is_absent(&self) -> bool {
        matches!(self, ConfigError::Unreadable { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

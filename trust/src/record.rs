//! What a store keeps: a record, its key, its index, and the number of a change.
//!
//! A record encodes itself; this crate knows no codec. Whatever bytes `decode` is given come from a file whose digest
//! held, and yet it must refuse what it does not understand: a refusal closes the store, it never drops a record.
//!
//! Not here: how changes reach the disk (`frame`, `drainer`), what the records mean (`rules`).

use std::fmt;
use std::hash::Hash;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Number of the last change of a store: plus one for each change, never reused, zero before the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Revision(pub u64);

impl Revision {
    /// Before the first change.
    pub const ZERO: Self = Self(0);

    /// The revision of the next change.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The record files of a data directory. The numbers are part of the file format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum FileKind {
    /// Edges, blocks and their history.
    Trust = 1,
    /// Addresses and times of contact.
    Peers = 2,
    /// Session records.
    Sessions = 3,
    /// Networks, members, expulsions, invites and redemptions.
    Invites = 4,
}

impl FileKind {
    /// Every kind, in the order of its numbers.
    pub const ALL: [Self; 4] = [Self::Trust, Self::Peers, Self::Sessions, Self::Invites];

    /// Name of the file in the data directory.
    #[must_use]
    pub const fn file_name(self) -> &'static str {
        match self {
            Self::Trust => "trust.hf",
            Self::Peers => "peers.hf",
            Self::Sessions => "sessions.hf",
            Self::Invites => "invites.hf",
        }
    }

    /// Name of the file while a checkpoint builds it.
    #[must_use]
    pub const fn temporary_name(self) -> &'static str {
        match self {
            Self::Trust => "trust.hf.tmp",
            Self::Peers => "peers.hf.tmp",
            Self::Sessions => "sessions.hf.tmp",
            Self::Invites => "invites.hf.tmp",
        }
    }

    /// Whether a damaged file of this kind may be set aside and begun anew.
    #[must_use]
    pub const fn safe_to_lose(self) -> bool {
        matches!(self, Self::Peers | Self::Sessions)
    }

    /// Whether the `floor` file holds a revision of this kind: what may be lost needs none.
    #[must_use]
    pub const fn has_floor(self) -> bool {
        !self.safe_to_lose()
    }

    /// The kind with this number.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Trust),
            2 => Some(Self::Peers),
            3 => Some(Self::Sessions),
            4 => Some(Self::Invites),
            _ => None,
        }
    }
}

impl fmt::Display for FileKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.file_name())
    }
}

/// Why the bytes of a key or of a record were refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum RecordFault {
    /// The bytes end before the record does.
    #[error("it ends too early")]
    TooShort,
    /// Bytes are left over.
    #[error("bytes follow its end")]
    TrailingBytes,
    /// The key is not one of this kind.
    #[error("its key is not valid")]
    BadKey,
    /// A tag, a version or an enumeration has a value that this build does not know.
    #[error("it holds an unknown tag {0}")]
    UnknownTag(u32),
    /// A field's value is outside its range.
    #[error("a field is outside its range")]
    BadValue,
    /// The bytes are not the one encoding of what they say.
    #[error("it is not in canonical form")]
    NotCanonical,
    /// The record does not belong to its key.
    #[error("it does not belong to its key")]
    KeyMismatch,
}

/// A value with a key, kept in a [`Store`](crate::Store).
pub trait Record: Send + Sync + Sized + 'static {
    /// What it is found by.
    type Key: Copy + Ord + Hash + fmt::Debug + Send + Sync + 'static;
    /// What is kept beside the table for readers that must not wait; `()` where nothing is.
    type Index: Index<Self>;
    /// The file it lives in.
    const KIND: FileKind;

    /// Appends the key's bytes; at most [`MAX_KEY_BYTES`](crate::frame::MAX_KEY_BYTES).
    fn encode_key(key: &Self::Key, out: &mut Vec<u8>);

    /// The inverse of [`encode_key`](Self::encode_key).
    ///
    /// # Errors
    /// Whatever `encode_key` would not have written.
    fn decode_key(bytes: &[u8]) -> Result<Self::Key, RecordFault>;

    /// Appends the record's bytes; at most [`MAX_RECORD_BYTES`](crate::frame::MAX_RECORD_BYTES).
    fn encode(&self, out: &mut Vec<u8>);

    /// The inverse of [`encode`](Self::encode).
    ///
    /// # Errors
    /// Whatever `encode` would not have written.
    fn decode(key: &Self::Key, bytes: &[u8]) -> Result<Self, RecordFault>;

    /// Called for a record that was read from the disk and that no sync is known to have put there: it is durable with
    /// this revision of the store, once the file is written anew.
    fn found_unconfirmed(&mut self, _at: Revision) {}
}

/// A view of a table that is read without its lock.
pub trait Index<R: Record>: Default + Send + Sync + 'static {
    /// Called inside the store's lock for every change, before its release, and for each record at recovery.
    fn changed(&self, key: &R::Key, old: Option<&R>, new: Option<&Arc<R>>, revision: Revision);

    /// Called before recovery: so many records will come, about.
    fn expect(&self, _: usize) {}

    /// Called outside the lock: these will be changed next, and what is kept of them may as well be on its way.
    fn touch<'a>(&self, _: impl Iterator<Item = &'a R::Key>)
    where
        R::Key: 'a,
    {
    }

    /// Called outside the lock, after each change: brings what the next ones may need, so that they need not allocate.
    fn restock(&self) {}
}

impl<R: Record> Index<R> for () {
    fn changed(&self, _: &R::Key, _: Option<&R>, _: Option<&Arc<R>>, _: Revision) {}
}

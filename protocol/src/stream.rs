//! How every stream begins, and the extensions that end every frame so that later versions can add.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use crate::codec::{self, CodecFault};
use crate::fault::RefuseCode;
use crate::limits::{EXTENSION_BYTES_MAX, EXTENSIONS_MAX, HEAD_BYTES_MAX, PROTOCOL_VERSION};
use crate::text::ServiceName;

/// What a stream is for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum StreamKind {
    /// Offer, Answer, Receipt. Open to everybody who proved a key.
    Exchange,
    /// A number, and the same number back. For trusted peers.
    Ping,
    /// Redemption of an invite, rosters, expulsions, renewals. Open to everybody who proved a key.
    Join,
    /// An application's stream. For trusted peers whose scope names it.
    Service(ServiceName),
}

/// The first frame of every stream.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Head {
    /// [`PROTOCOL_VERSION`].
    pub version: u8,
    /// What follows.
    pub kind: StreamKind,
    /// Reserved for later versions.
    pub extensions: Extensions,
}

impl Head {
    /// The head of a stream of this kind.
    pub fn new(kind: StreamKind) -> Head {
        Head { version: PROTOCOL_VERSION, kind, extensions: Extensions::default() }
    }

    /// Reads a head from a frame body.
    ///
    /// # Errors
    /// The code to refuse the stream with.
    pub fn read(body: &[u8]) -> Result<StreamKind, RefuseCode> {
        if body.first().is_some_and(|version| *version != PROTOCOL_VERSION) {
            return Err(RefuseCode::BadVersion);
        }
        let head: Head = codec::decode(body, HEAD_BYTES_MAX).map_err(|_: CodecFault| RefuseCode::BadFrame)?;
        head.extensions.require_understood(&[])?;
        Ok(head.kind)
    }
}

/// The number that a ping carries there and back.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Ping {
    /// Chosen by the opener.
    pub nonce: u64,
}

/// One addition of a later version.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Extension {
    /// What it is.
    pub tag: u16,
    /// Whether a node that does not know it must refuse the frame.
    pub critical: bool,
    /// Its value.
    #[serde(deserialize_with = "codec::bounded_list::<_, _, EXTENSION_BYTES_MAX>")]
    pub bytes: Vec<u8>,
}

/// At most [`EXTENSIONS_MAX`] extensions of at most [`EXTENSION_BYTES_MAX`] bytes, in ascending order of their tags.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Extensions(Vec<Extension>);

impl Extensions {
    /// The extensions `list`, in ascending order of their tags.
    pub fn new(mut list: Vec<Extension>) -> Extensions {
        list.sort_by_key(|extension| extension.tag);
        Extensions(list)
    }

    /// The value of the extension with this tag.
    pub fn value(&self, tag: u16) -> Option<&[u8]> {
        self.0.iter().find(|extension| extension.tag == tag).map(|extension| &*extension.bytes)
    }

    /// Refuses the frame if it carries a critical extension other than `known`.
    ///
    /// # Errors
    /// [`RefuseCode::CriticalExtension`].
    pub fn require_understood(&self, known: &[u16]) -> Result<(), RefuseCode> {
        if self.0.iter().any(|extension| extension.critical && !known.contains(&extension.tag)) {
            Err(RefuseCode::CriticalExtension)
        } else {
            Ok(())
        }
    }
}

impl<'de> Deserialize<'de> for Extensions {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Extensions, D::Error> {
        let list: Vec<Extension> = codec::bounded_list::<_, _, EXTENSIONS_MAX>(deserializer)?;
        if !list.is_sorted_by(|a, b| a.tag < b.tag) {
            return Err(D::Error::custom("extensions out of order"));
        }
        Ok(Extensions(list))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(extensions: Vec<Extension>) -> Vec<u8> {
        codec::encode(&Head { extensions: Extensions(extensions), ..Head::new(StreamKind::Ping) })
    }

    fn extension(tag: u16, critical: bool) -> Extension {
        Extension { tag, critical, bytes: vec![1] }
    }

    #[test]
    fn unknown_extensions_are_ignored_unless_critical() {
        assert_eq!(Head::read(&head(vec![extension(9, false)])), Ok(StreamKind::Ping));
        assert_eq!(Head::read(&head(vec![extension(9, true)])), Err(RefuseCode::CriticalExtension));
    }

    #[test]
    fn extensions_are_bounded_and_ordered() {
        let many = (0..9).map(|tag| extension(tag, false)).collect();
        assert_eq!(Head::read(&head(many)), Err(RefuseCode::BadFrame));
        let unordered = vec![extension(2, false), extension(1, false)];
        assert_eq!(Head::read(&head(unordered)), Err(RefuseCode::BadFrame));
        let twice = vec![extension(1, false), extension(1, false)];
        assert_eq!(Head::read(&head(twice)), Err(RefuseCode::BadFrame));
    }

    #[test]
    fn another_version_is_named_as_such_whatever_follows() {
        assert_eq!(Head::read(&[2, 0xff]), Err(RefuseCode::BadVersion));
        assert_eq!(Head::read(&[]), Err(RefuseCode::BadFrame));
    }
}

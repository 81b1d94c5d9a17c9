//! Text that strangers send: refused when it could deceive a reader, bounded always.
//!
//! Invariant: a [`Note`], [`ServiceName`] or [`NetworkName`] that exists is safe. Each checks in its only constructor, which
//! its decoder uses too, so no value can enter unchecked. What is shown is escaped again by whoever shows it.

use std::fmt;

use serde::{Deserialize, Serialize, Serializer};

use crate::limits::{NETWORK_NAME_BYTES_MAX, NOTE_BYTES_MAX, SERVICE_BYTES_MAX};

/// Why a text is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TextFault {
    /// More bytes than allowed.
    #[error("the text is {len} bytes long; at most {max} are allowed")]
    TooLong {
        /// Bytes given.
        len: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// A character that can hide, reorder or command.
    #[error("the text holds the character U+{0:04X}, which is not allowed (control, direction, zero-width or tag)")]
    Unsafe(u32),
    /// A service name outside `[a-z0-9._-]`, or empty.
    #[error("a service name is 1 to 32 characters out of a-z, 0-9, '.', '_' and '-'")]
    NotAServiceName,
    /// A network name outside `[a-z0-9._-]`, or empty.
    #[error("the name of a network is 1 to 32 characters out of a-z, 0-9, '.', '_' and '-'")]
    NotANetworkName,
}

/// True for characters that can hide, reorder or command: C0 and C1 controls, bidirectional controls, zero-width and
/// other invisible format characters, line separators, interlinear annotation, tags (Unicode TR 36, section 3).
pub fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{00AD}' | '\u{034F}' | '\u{061C}' | '\u{115F}' | '\u{1160}' | '\u{17B4}' | '\u{17B5}'
            | '\u{180B}'..='\u{180F}' | '\u{200B}'..='\u{200F}' | '\u{2028}'..='\u{202E}' | '\u{2060}'..='\u{206F}'
            | '\u{3164}' | '\u{FE00}'..='\u{FE0F}' | '\u{FEFF}' | '\u{FFA0}' | '\u{FFF0}'..='\u{FFFB}'
            | '\u{1BCA0}'..='\u{1BCA3}' | '\u{1D173}'..='\u{1D17A}' | '\u{E0000}'..='\u{E0FFF}')
}

/// Shows any text safely: unsafe characters become `\u{..}`.
pub fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_unsafe(c) { out.extend(c.escape_unicode()) } else { out.push(c) }
    }
    out
}

/// A remark of at most [`NOTE_BYTES_MAX`] bytes of safe UTF-8: notes, aliases and reasons. May be empty.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Deserialize)]
#[serde(try_from = "String")]
pub struct Note(Box<str>);

impl Note {
    /// Checks `text`.
    ///
    /// # Errors
    /// [`TextFault::TooLong`] and [`TextFault::Unsafe`].
    pub fn new(text: &str) -> Result<Note, TextFault> {
        if text.len() > NOTE_BYTES_MAX {
            return Err(TextFault::TooLong { len: text.len(), max: NOTE_BYTES_MAX });
        }
        match text.chars().find(|c| is_unsafe(*c)) {
            Some(c) => Err(TextFault::Unsafe(u32::from(c))),
            None => Ok(Note(text.into())),
        }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// True when nothing was said.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Serialize for Note {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl TryFrom<String> for Note {
    type Error = TextFault;
    fn try_from(text: String) -> Result<Note, TextFault> {
        Note::new(&text)
    }
}

impl From<Note> for String {
    fn from(note: Note) -> String {
        note.0.into()
    }
}

impl fmt::Debug for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A plain name: 1 to so many characters out of `[a-z0-9._-]`.
macro_rules! plain_name {
    ($(#[$doc:meta])* $name:ident, $max:expr, $fault:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Box<str>);

        impl $name {
            /// Checks `name`.
            ///
            /// # Errors
            /// That it is not one.
            pub fn new(name: &str) -> Result<$name, TextFault> {
                let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-');
                if name.is_empty() || name.len() > $max || !name.bytes().all(plain) {
                    return Err($fault);
                }
                Ok($name(name.into()))
            }

            /// The name.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = TextFault;
            fn try_from(name: String) -> Result<$name, TextFault> {
                $name::new(&name)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0.into()
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

plain_name! {
    /// The name of an application service: 1 to [`SERVICE_BYTES_MAX`] characters out of `[a-z0-9._-]`.
    ServiceName, SERVICE_BYTES_MAX, TextFault::NotAServiceName
}
plain_name! {
    /// What people call a network: 1 to [`NETWORK_NAME_BYTES_MAX`] characters out of `[a-z0-9._-]`. It names nothing by
    /// itself: two networks may call themselves the same.
    NetworkName, NETWORK_NAME_BYTES_MAX, TextFault::NotANetworkName
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_refuse_what_could_deceive() {
        for bad in ["a\nb", "\u{1b}[31m", "\u{202e}txt", "a\u{200b}", "\u{e0041}", "\u{feff}", "\u{2028}", "\u{7f}"] {
            assert!(matches!(Note::new(bad), Err(TextFault::Unsafe(_))), "{bad:?}");
        }
        for good in ["", "hello", "naïve café", "日本語", "a 'quoted' \"text\" \\"] {
            assert_eq!(Note::new(good).unwrap().as_str(), good);
        }
    }

    #[test]
    fn notes_are_bounded_in_bytes() {
        assert!(Note::new(&"x".repeat(NOTE_BYTES_MAX)).is_ok());
        let long = "é".repeat(NOTE_BYTES_MAX / 2 + 1);
        assert_eq!(Note::new(&long), Err(TextFault::TooLong { len: long.len(), max: NOTE_BYTES_MAX }));
    }

    #[test]
    fn service_names_are_plain() {
        for bad in ["", "A", "a b", "ä", &"x".repeat(SERVICE_BYTES_MAX + 1)] {
            assert_eq!(ServiceName::new(bad), Err(TextFault::NotAServiceName), "{bad:?}");
        }
        assert!(ServiceName::new("backup-2.v_1").is_ok());
    }

    #[test]
    fn escaping_leaves_nothing_unsafe() {
        assert_eq!(escaped("a\u{202e}b"), "a\\u{202e}b");
    }
}

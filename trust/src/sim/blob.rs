//! A record for suites that test the core and not the meaning of records.

use crate::record::{FileKind, Record, RecordFault};

/// Any bytes under a number, in the file of kind `KIND` (by its number).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Blob<const KIND: u8>(pub Vec<u8>);

impl<const KIND: u8> Record for Blob<KIND> {
    type Key = u64;
    type Index = ();
    const KIND: FileKind = match FileKind::from_number(KIND) {
        Some(kind) => kind,
        None => panic!("the number of a file kind"),
    };

    fn encode_key(key: &u64, out: &mut Vec<u8>) {
        out.extend_from_slice(&key.to_le_bytes());
    }

    fn decode_key(bytes: &[u8]) -> Result<u64, RecordFault> {
        bytes.try_into().map(u64::from_le_bytes).map_err(|_| RecordFault::BadKey)
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.0);
    }

    fn decode(_: &u64, bytes: &[u8]) -> Result<Self, RecordFault> {
        Ok(Self(bytes.to_vec()))
    }
}

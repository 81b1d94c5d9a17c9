//! handfast's store: with plain bytes, and with true trust records.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use handfast_benches::records::{Plain, record};
use handfast_benches::{Place, Stand};
use handfast_protocol::{Kind, PeerId};
use handfast_trust::{TrustRecord, Urgency};

use crate::engine::{Change, Engine};

const PATIENCE: Duration = Duration::from_secs(60);

/// Most records on their way to the disk while the store is filled.
const FILL_AT_ONCE: usize = 8_192;

/// The store with records of plain bytes.
pub struct Bytes(pub Stand<Plain>);

impl Bytes {
    /// An empty one.
    pub fn make(place: &Place) -> Result<Box<dyn Engine>> {
        Ok(Box::new(Self(Stand::create(place)?)))
    }

    fn put(&self, changes: &[Change]) {
        let records = changes.iter().map(|(key, bytes)| (*key, Arc::new(Plain(bytes.as_slice().into()))));
        self.0.store.put_all(records, Urgency::Critical);
    }
}

impl Engine for Bytes {
    fn fill(&mut self, changes: &[Change]) -> Result<()> {
        for part in changes.chunks(FILL_AT_ONCE) {
            self.commit(part)?;
        }
        Ok(())
    }

    fn filled(&mut self) -> Result<()> {
        self.0.settle()
    }

    fn commit(&mut self, changes: &[Change]) -> Result<()> {
        self.put(changes);
        Ok(self.0.store.durable().reached_blocking(self.0.store.revision(), PATIENCE)?)
    }
}

/// The store with trust records, which it encodes and indexes; of a change only the key is taken.
pub struct Trust {
    stand: Stand<TrustRecord>,
    templates: [TrustRecord; 2],
    epoch: u64,
}

impl Trust {
    /// An empty one.
    pub fn make(place: &Place) -> Result<Box<dyn Engine>> {
        let templates = [record(Kind::Grant, 2), record(Kind::Revoke, 2)];
        Ok(Box::new(Self { stand: Stand::create(place)?, templates, epoch: 2 }))
    }
}

impl Engine for Trust {
    fn fill(&mut self, changes: &[Change]) -> Result<()> {
        for part in changes.chunks(FILL_AT_ONCE) {
            self.commit(part)?;
        }
        Ok(())
    }

    fn filled(&mut self) -> Result<()> {
        self.stand.settle()
    }

    fn commit(&mut self, changes: &[Change]) -> Result<()> {
        let (epoch, templates) = (&mut self.epoch, &self.templates);
        let records = changes.iter().map(|(key, _)| {
            *epoch += 1;
            let mut record = templates[*epoch as usize % 2].clone();
            if let Some(theirs) = &mut record.theirs {
                theirs.terms.epoch = *epoch;
            }
            (PeerId::from_stored(*key), Arc::new(record))
        });
        self.stand.store.put_all(records, Urgency::Critical);
        Ok(self.stand.store.durable().reached_blocking(self.stand.store.revision(), PATIENCE)?)
    }
}

//! The table and its dirty list against a model.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use crate::sim::{Blob, Rig, SMALL, SimDisk};
use crate::table::{BATCH_HOLD_RECORDS, Batch, Supplies, Table, Urgency, WALK_RECORDS_MAX};

#[derive(Debug, Clone)]
enum Act {
    Put(u64, u8),
    Remove(u64),
    Take,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        6 => (0..40_u64, any::<u8>()).prop_map(|(key, byte)| Act::Put(key, byte)),
        3 => (0..40_u64).prop_map(Act::Remove),
        1 => Just(Act::Take),
    ];
    proptest::collection::vec(act, 0..400)
}

/// Whatever happens, the lists that were taken lead to what the table holds, and none names a key twice.
fn check(acts: &[Act], seed: u64) {
    let mut table = Table::<Blob<1>>::new(seed);
    let mut model = BTreeMap::new();
    let mut disk = BTreeMap::new();
    let mut changes = 0;
    let mut take = |table: &mut Table<Blob<1>>| {
        let (list, revision, records) = table.take_dirty();
        let mut seen = Vec::new();
        for (key, record) in list.chunks.into_iter().flatten().flatten() {
            assert!(!seen.contains(&key), "{key} twice");
            seen.push(key);
            match record {
                Some(record) => drop(disk.insert(key, record.0[0])),
                None => drop(disk.remove(&key)),
            }
        }
        assert_eq!((revision, records), (table.revision(), table.len() as u64));
        disk.clone()
    };
    for act in acts {
        match *act {
            Act::Put(key, byte) => {
                table.put(key, Blob(vec![byte]), Urgency::Critical);
                model.insert(key, byte);
                changes += 1;
            }
            Act::Remove(key) => {
                let removed = table.remove(&key, Urgency::Critical).map(|record| record.0[0]);
                assert_eq!(removed, model.remove(&key));
                changes += u64::from(removed.is_some());
            }
            Act::Take => assert_eq!(take(&mut table), model),
        }
        assert_eq!(table.len(), model.len());
    }
    assert_eq!(table.revision().0, changes);
    assert_eq!(take(&mut table), model);
    assert!(table.owed().is_none());
    for key in 0..40 {
        assert_eq!(table.get(&key).map(|record| record.0[0]), model.get(&key).copied());
    }
}

proptest! {
    #[test]
    fn the_lists_lead_to_the_table(acts in acts(), seed in any::<u64>()) {
        check(&acts, seed);
    }
}

/// A batch is what the same changes are one by one: the table, its revision, what the drainer takes, and what is on the
/// disk after a restart; with keys that come again, and in a table that grows meanwhile.
#[test]
fn a_batch_is_its_changes_one_after_another() {
    let [one_by_one, mut at_once] = [(), ()].map(|()| Rig::create(SimDisk::default(), 1, SMALL).unwrap());
    let mut key = 1_u64;
    for size in [0, 1, 7, 8, 9, 300, 5_000] {
        let changes: Vec<(u64, Vec<u8>)> = (0..size)
            .map(|n: u64| {
                key = key.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (key % 3_000, n.to_le_bytes().to_vec())
            })
            .collect();
        for (key, bytes) in &changes {
            one_by_one.put(*key, bytes);
        }
        let records = changes.iter().map(|(key, bytes)| (*key, Arc::new(Blob(bytes.clone()))));
        let revision = at_once.store.put_all(records, Urgency::Critical);
        assert_eq!((revision, at_once.store.revision()), (one_by_one.store.revision(), revision));
        assert_eq!(at_once.records(), one_by_one.records());
    }
    assert!(at_once.settle(Duration::from_secs(1)));
    assert_eq!(at_once.store.durable().current(), at_once.store.revision());
    let records = at_once.records();
    let disk = std::mem::take(at_once.drainer.medium());
    drop(at_once);
    assert_eq!(Rig::open(disk, 2, SMALL).unwrap().records(), records);
}

/// A batch takes the lock for a few changes at a time, and lets it go where something has to be brought.
#[test]
fn a_hold_of_a_batch_is_bounded() {
    let mut table = Table::<Blob<1>>::new(1);
    let mut changes = (0..10_000).map(|key| (key, Arc::new(Blob(vec![1]))));
    let (mut batch, mut holds) = (Batch::new(table.seed()), 0);
    while batch.take(&mut changes) {
        let before = table.revision().0;
        table.put_batch(&mut batch, Urgency::Critical);
        let made = table.revision().0 - before;
        assert!((1..=BATCH_HOLD_RECORDS as u64).contains(&made), "{made}");
        assert!(made == BATCH_HOLD_RECORDS as u64 || !table.wanted().is_nothing(), "{made} without a reason");
        table.supply(&mut Supplies::of(table.wanted()));
        holds += 1;
    }
    assert!((10_000 / BATCH_HOLD_RECORDS..10_000).contains(&holds), "{holds}");
    assert_eq!(table.len(), 10_000);
}

#[test]
fn a_hold_of_a_walk_is_bounded() {
    let mut table = Table::<Blob<1>>::new(1);
    for key in 0..10_000 {
        table.put(key, Blob(Vec::new()), Urgency::Lazy);
    }
    let mut cursor = crate::table::Cursor::start();
    let mut all = Vec::new();
    loop {
        let mut piece = Vec::new();
        let more = table.walk(&mut cursor, &mut piece);
        assert!(piece.len() <= WALK_RECORDS_MAX / 4);
        all.extend(piece.into_iter().map(|(key, _)| key));
        if !more {
            break;
        }
    }
    all.sort_unstable();
    assert_eq!(all, (0..10_000).collect::<Vec<_>>());
}

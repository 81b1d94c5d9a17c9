//! The table and its dirty list against a model.

use std::collections::BTreeMap;

use proptest::prelude::*;

use crate::sim::Blob;
use crate::table::{Table, Urgency, WALK_RECORDS_MAX};

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

//! The other engines, each with its settings for a commit that survives a power cut.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::engine::{Change, Engine, Key};

const NAME: &str = "records";

/// redb with `Durability::Immediate`, its default.
pub struct Redb(redb::Database);

const TABLE: redb::TableDefinition<'static, &[u8], &[u8]> = redb::TableDefinition::new(NAME);

impl Redb {
    pub fn make(path: &Path) -> Result<Box<dyn Engine>> {
        Ok(Box::new(Self(redb::Database::create(path.join("redb"))?)))
    }

    fn put(&self, changes: &[Change], durability: redb::Durability) -> Result<()> {
        let mut transaction = self.0.begin_write()?;
        transaction.set_durability(durability)?;
        {
            let mut table = transaction.open_table(TABLE)?;
            for (key, bytes) in changes {
                table.insert(key.as_slice(), bytes.as_slice())?;
            }
        }
        Ok(transaction.commit()?)
    }
}

impl Engine for Redb {
    fn fill(&mut self, changes: &[Change]) -> Result<()> {
        self.put(changes, redb::Durability::None)
    }

    fn filled(&mut self) -> Result<()> {
        self.put(&[], redb::Durability::Immediate)
    }

    fn commit(&mut self, changes: &[Change]) -> Result<()> {
        self.put(changes, redb::Durability::Immediate)
    }
}

/// fjall with `PersistMode::SyncData` for each batch.
pub struct Fjall {
    database: fjall::Database,
    keyspace: fjall::Keyspace,
}

impl Fjall {
    pub fn make(path: &Path) -> Result<Box<dyn Engine>> {
        let database = fjall::Database::builder(path.join("fjall")).open()?;
        let keyspace = database.keyspace(NAME, fjall::KeyspaceCreateOptions::default)?;
        Ok(Box::new(Self { database, keyspace }))
    }

    fn put(&self, changes: &[Change], mode: Option<fjall::PersistMode>) -> Result<()> {
        let mut batch = self.database.batch().durability(mode);
        for (key, bytes) in changes {
            batch.insert(&self.keyspace, key.as_slice(), bytes.as_slice());
        }
        Ok(batch.commit()?)
    }
}

impl Engine for Fjall {
    fn fill(&mut self, changes: &[Change]) -> Result<()> {
        self.put(changes, None)
    }

    fn filled(&mut self) -> Result<()> {
        Ok(self.database.persist(fjall::PersistMode::SyncAll)?)
    }

    fn commit(&mut self, changes: &[Change]) -> Result<()> {
        self.put(changes, Some(fjall::PersistMode::SyncData))
    }
}

/// SQLite in WAL mode with `synchronous=FULL`.
pub struct Sqlite(rusqlite::Connection);

impl Sqlite {
    pub fn make(path: &Path) -> Result<Box<dyn Engine>> {
        let connection = rusqlite::Connection::open(path.join("sqlite"))?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.execute("CREATE TABLE records (key BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID", ())?;
        Ok(Box::new(Self(connection)))
    }
}

impl Engine for Sqlite {
    fn fill(&mut self, changes: &[Change]) -> Result<()> {
        self.commit(changes)
    }

    fn filled(&mut self) -> Result<()> {
        Ok(self.0.query_row("PRAGMA wal_checkpoint(TRUNCATE)", (), |_| Ok(()))?)
    }

    fn commit(&mut self, changes: &[Change]) -> Result<()> {
        let transaction = self.0.transaction()?;
        {
            let mut put = transaction.prepare_cached("INSERT OR REPLACE INTO records VALUES (?1, ?2)")?;
            for (key, bytes) in changes {
                put.execute((key.as_slice(), bytes.as_slice()))?;
            }
        }
        Ok(transaction.commit()?)
    }
}

/// LMDB, which syncs at each commit by default.
pub struct Lmdb {
    environment: heed::Env,
    database: heed::Database<heed::types::Bytes, heed::types::Bytes>,
}

impl Lmdb {
    const MAP_BYTES: usize = 16 << 30;

    #[allow(unsafe_code, reason = "heed cannot know that nobody else opens the file: this directory is ours alone")]
    pub fn make(path: &Path) -> Result<Box<dyn Engine>> {
        let directory = path.join("lmdb");
        fs::create_dir(&directory)?;
        let mut options = heed::EnvOpenOptions::new();
        options.map_size(Self::MAP_BYTES);
        // SAFETY: the directory was just made for this benchmark, and is opened once.
        let environment = unsafe { options.open(directory)? };
        let mut transaction = environment.write_txn()?;
        let database = environment.create_database(&mut transaction, None)?;
        transaction.commit()?;
        Ok(Box::new(Self { environment, database }))
    }
}

impl Engine for Lmdb {
    fn fill(&mut self, changes: &[Change]) -> Result<()> {
        self.commit(changes)
    }

    fn filled(&mut self) -> Result<()> {
        Ok(self.environment.force_sync()?)
    }

    fn commit(&mut self, changes: &[Change]) -> Result<()> {
        let mut transaction = self.environment.write_txn()?;
        for (key, bytes) in changes {
            self.database.put(&mut transaction, key, bytes)?;
        }
        Ok(transaction.commit()?)
    }
}

/// The whole file, written anew: temporary file, fsync, rename, fsync of the directory.
pub struct Rewrite {
    directory: PathBuf,
    places: HashMap<Key, usize>,
    content: Vec<u8>,
}

impl Rewrite {
    pub fn make(path: &Path) -> Result<Box<dyn Engine>> {
        Ok(Box::new(Self { directory: path.to_owned(), places: HashMap::new(), content: Vec::new() }))
    }
}

impl Engine for Rewrite {
    fn fill(&mut self, changes: &[Change]) -> Result<()> {
        for (key, bytes) in changes {
            match self.places.get(key) {
                Some(at) => self.content[*at..*at + bytes.len()].copy_from_slice(bytes),
                None => {
                    self.content.extend_from_slice(key);
                    self.places.insert(*key, self.content.len());
                    self.content.extend_from_slice(bytes);
                }
            }
        }
        Ok(())
    }

    fn filled(&mut self) -> Result<()> {
        self.commit(&[])
    }

    fn commit(&mut self, changes: &[Change]) -> Result<()> {
        self.fill(changes)?;
        let temporary = self.directory.join("records.tmp");
        let mut file = File::create(&temporary)?;
        file.write_all(&self.content)?;
        file.sync_all()?;
        #[allow(clippy::disallowed_methods, reason = "the directory is synced in the next line")]
        fs::rename(&temporary, self.directory.join(NAME))?;
        Ok(File::open(&self.directory)?.sync_all()?)
    }
}

//! The file itself: redb tables and what a write does to them. Blocking.

use std::path::Path;

use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};

use super::Write;
use crate::store::StoreError;
use crate::task::{Millis, Record};

/// Version of what the tables hold.
const FORMAT: u64 = 1;
/// Enough for the index pages of a million records; the values are read seldom.
const CACHE_BYTES: usize = 2 * 1024 * 1024;

/// `format`
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// Task id → version, when it ended (0: live), record as JSON.
const TASKS: TableDefinition<'_, &str, (u64, Millis, &str)> = TableDefinition::new("tasks");
/// Tasks that have not ended.
const LIVE: TableDefinition<'_, &str, ()> = TableDefinition::new("live");
/// When it ended, task id.
const ENDED: TableDefinition<'_, (Millis, &str), ()> = TableDefinition::new("ended");

/// The open file.
pub(super) struct File(Database);

impl File {
    pub(super) fn open(path: &Path) -> Result<Self, String> {
        let database = Database::builder().set_cache_size(CACHE_BYTES).create(path).map_err(|e| match e {
            redb::DatabaseError::DatabaseAlreadyOpen => "another process uses it (accepted: one scaler)".to_owned(),
            redb::DatabaseError::UpgradeRequired(version) => {
                format!("it was written by an incompatible version (file format {version})")
            }
            other => other.to_string(),
        })?;
        let file = Self(database);
        file.prepare().map_err(|e| e.to_string())??;
        Ok(file)
    }

    /// Creates the tables, and refuses those of another version.
    fn prepare(&self) -> Result<Result<(), String>, redb::Error> {
        let transaction = self.begin()?;
        {
            let mut meta = transaction.open_table(META)?;
            let format = meta.get("format")?.map(|found| found.value());
            match format {
                None => drop(meta.insert("format", FORMAT)?),
                Some(FORMAT) => return Ok(Ok(())),
                Some(other) => {
                    return Ok(Err(format!("its format is {other}, of another version (this one reads {FORMAT})")));
                }
            }
            transaction.open_table(TASKS)?;
            transaction.open_table(LIVE)?;
            transaction.open_table(ENDED)?;
        }
        transaction.commit()?;
        Ok(Ok(()))
    }

    fn begin(&self) -> Result<WriteTransaction, redb::Error> {
        let mut transaction = self.0.begin_write()?;
        transaction.set_durability(Durability::Immediate)?;
        // The file opens in an instant after a kill, however large it is.
        transaction.set_quick_repair(true);
        Ok(transaction)
    }

    /// Does the writes in their order and makes them durable. The outer error means that none was done.
    pub(super) fn commit(&self, writes: &[Write]) -> Result<Vec<Result<usize, StoreError>>, String> {
        let run = || -> Result<_, redb::Error> {
            let transaction = self.begin()?;
            let mut results = Vec::with_capacity(writes.len());
            {
                let mut tables = Tables {
                    tasks: transaction.open_table(TASKS)?,
                    live: transaction.open_table(LIVE)?,
                    ended: transaction.open_table(ENDED)?,
                };
                for write in writes {
                    results.push(tables.apply(write)?);
                }
            }
            if writes.iter().any(|write| matches!(write, Write::Ping)) {
                let mut meta = transaction.open_table(META)?;
                meta.insert("format", FORMAT)?;
            }
            transaction.commit()?;
            Ok(results)
        };
        run().map_err(|e| e.to_string())
    }

    pub(super) fn get(&self, task_id: &str) -> Result<Option<Record>, StoreError> {
        let run = || -> Result<_, redb::Error> {
            let tasks = self.0.begin_read()?.open_table(TASKS)?;
            let found = tasks.get(task_id)?;
            Ok(found.map(|found| {
                let (version, _, json) = found.value();
                decode(task_id, version, json)
            }))
        };
        run().map_err(unavailable)?.transpose()
    }

    pub(super) fn load(&self, most_ended: usize) -> Result<Vec<Record>, StoreError> {
        let run = || -> Result<_, redb::Error> {
            let transaction = self.0.begin_read()?;
            let tasks = transaction.open_table(TASKS)?;
            let live = transaction.open_table(LIVE)?;
            let ended = transaction.open_table(ENDED)?;
            let mut records = Vec::new();
            let mut add = |task_id: &str| -> Result<(), redb::Error> {
                let Some(found) = tasks.get(task_id)? else { return Ok(()) };
                let (version, _, json) = found.value();
                match decode(task_id, version, json) {
                    Ok(record) => records.push(record),
                    // One damaged record must not stop all the others.
                    Err(error) => tracing::error!(task_id, "{error}; the record is left out"),
                }
                Ok(())
            };
            for item in live.iter()? {
                add(item?.0.value())?;
            }
            for item in ended.iter()?.rev().take(most_ended) {
                add(item?.0.value().1)?;
            }
            Ok(records)
        };
        run().map_err(unavailable)
    }
}

struct Tables<'t> {
    tasks: redb::Table<'t, &'static str, (u64, Millis, &'static str)>,
    live: redb::Table<'t, &'static str, ()>,
    ended: redb::Table<'t, (Millis, &'static str), ()>,
}

impl Tables<'_> {
    fn apply(&mut self, write: &Write) -> Result<Result<usize, StoreError>, redb::Error> {
        match write {
            Write::Put { task_id, version, ended_at, json } => {
                let stored = self.stored(task_id)?;
                let same = stored.as_ref().is_some_and(|(stored, _, text)| stored == version && text == json);
                if same {
                    return Ok(Ok(1));
                }
                if stored.as_ref().map_or(0, |stored| stored.0).checked_add(1) != Some(*version) {
                    return Ok(Err(StoreError::Conflict(task_id.clone())));
                }
                self.unlist(task_id, stored.map(|stored| stored.1))?;
                self.tasks.insert(task_id.as_str(), (*version, ended_at.unwrap_or(0), json.as_str()))?;
                match ended_at {
                    Some(at) => self.ended.insert((*at, task_id.as_str()), ())?,
                    None => self.live.insert(task_id.as_str(), ())?,
                };
                Ok(Ok(1))
            }
            Write::Remove { task_id, version } => match self.stored(task_id)? {
                Some((stored, _, _)) if stored != *version => Ok(Err(StoreError::Conflict(task_id.clone()))),
                None => Ok(Ok(0)),
                Some((_, ended_at, _)) => {
                    self.unlist(task_id, Some(ended_at))?;
                    self.tasks.remove(task_id.as_str())?;
                    Ok(Ok(1))
                }
            },
            Write::Expire { before, limit } => {
                let mut old = Vec::new();
                for item in self.ended.range(..(*before, ""))?.take(*limit) {
                    let (key, _) = item?;
                    let (at, task_id) = key.value();
                    old.push((at, task_id.to_owned()));
                }
                for (at, task_id) in &old {
                    self.ended.remove((*at, task_id.as_str()))?;
                    self.tasks.remove(task_id.as_str())?;
                }
                Ok(Ok(old.len()))
            }
            Write::Ping => Ok(Ok(0)),
        }
    }

    fn stored(&self, task_id: &str) -> Result<Option<(u64, Millis, String)>, redb::Error> {
        let found = self.tasks.get(task_id)?;
        Ok(found.map(|found| {
            let (version, ended_at, json) = found.value();
            (version, ended_at, json.to_owned())
        }))
    }

    fn unlist(&mut self, task_id: &str, ended_at: Option<Millis>) -> Result<(), redb::Error> {
        self.live.remove(task_id)?;
        if let Some(at) = ended_at {
            self.ended.remove((at, task_id))?;
        }
        Ok(())
    }
}

fn unavailable(error: redb::Error) -> StoreError {
    StoreError::Unavailable(error.to_string())
}

fn decode(task_id: &str, version: u64, json: &str) -> Result<Record, StoreError> {
    let corrupt = |reason: String| StoreError::Corrupt { task_id: task_id.to_owned(), reason };
    let record: Record = serde_json::from_str(json).map_err(|e| corrupt(e.to_string()))?;
    if record.version == version {
        Ok(record)
    } else {
        Err(corrupt(format!("it is version {} inside", record.version)))
    }
}

//! Task records in a file of the data directory, for a scaler without Redis.
//!
//! One thread owns the file. Writes that are waiting together become durable together (one fsync), each with its own
//! comparison of versions. After an I/O error the file is closed, and opened and checked again for the next request.

use std::path::Path;

use futures::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};

use self::file::File;
use super::{StoreError, TaskStore};
use crate::task::{EntryId, Millis, Record};

mod file;
#[cfg(test)]
mod tests;

/// Requests that may wait.
const QUEUE: usize = 1024;
/// Most writes of one commit.
const COMMIT: usize = 512;

/// Task records in `DATA_DIR/tasks.redb`. Cheap handle; the file is closed when the last one is gone.
#[derive(Clone, Debug)]
pub(crate) struct EmbeddedStore {
    requests: mpsc::Sender<Request>,
}

enum Request {
    Write { write: Write, answer: oneshot::Sender<Result<usize, StoreError>> },
    Get { task_id: String, answer: oneshot::Sender<Result<Option<Record>, StoreError>> },
    Load { ended: usize, answer: oneshot::Sender<Result<Vec<Record>, StoreError>> },
}

/// A change; each is done or refused by itself.
enum Write {
    Put { task_id: String, version: u64, ended_at: Option<Millis>, json: String },
    Remove { task_id: String, version: u64 },
    Expire { before: Millis, limit: usize },
    Ping,
}

impl EmbeddedStore {
    /// Opens the file, or creates it. Blocks.
    ///
    /// # Errors
    /// With the path: no permission, in use by another process, written by another version, damaged.
    pub(crate) fn open(data_dir: &Path) -> anyhow::Result<Self> {
        let path = data_dir.join("tasks.redb");
        let file = File::open(&path).map_err(|reason| anyhow::anyhow!("task store {}: {reason}", path.display()))?;
        let (requests, waiting) = mpsc::channel(QUEUE);
        // It ends, and closes the file, when the last handle is dropped.
        std::thread::Builder::new()
            .name("task-store".to_owned())
            .spawn(move || serve(&path, Some(file), waiting))
            .map_err(|e| anyhow::anyhow!("task store: no thread: {e}"))?;
        Ok(Self { requests })
    }

    async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> Request,
    ) -> Result<T, StoreError> {
        let gone = || StoreError::Unavailable("the thread of the task store has ended".to_owned());
        let (sender, answer) = oneshot::channel();
        self.requests.send(request(sender)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }

    async fn write(&self, write: Write) -> Result<usize, StoreError> {
        self.ask(|answer| Request::Write { write, answer }).await
    }
}

fn serve(path: &Path, mut open: Option<File>, mut requests: mpsc::Receiver<Request>) {
    let mut next = requests.blocking_recv();
    while let Some(request) = next.take() {
        let file = match open.take().map_or_else(|| File::open(path), Ok) {
            Ok(file) => file,
            Err(reason) => {
                refuse(request, &format!("{}: {reason}", path.display()));
                next = requests.blocking_recv();
                continue;
            }
        };
        let result = match request {
            Request::Get { task_id, answer } => reply(answer, file.get(&task_id)),
            Request::Load { ended, answer } => reply(answer, file.load(ended)),
            Request::Write { write, answer } => {
                let mut batch = vec![(write, answer)];
                while batch.len() < COMMIT {
                    match requests.try_recv() {
                        Ok(Request::Write { write, answer }) => batch.push((write, answer)),
                        Ok(other) => {
                            next = Some(other);
                            break;
                        }
                        Err(_) => break,
                    }
                }
                commit(&file, batch)
            }
        };
        match result {
            Ok(()) => open = Some(file),
            Err(reason) => tracing::error!(path = %path.display(), "task store: {reason}; opening it again"),
        }
        if next.is_none() {
            next = requests.blocking_recv();
        }
    }
}

/// Answers only after all of it is durable. An error is one of the file, not of a single write.
fn commit(file: &File, batch: Vec<(Write, oneshot::Sender<Result<usize, StoreError>>)>) -> Result<(), String> {
    let (writes, answers): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
    match file.commit(&writes) {
        Ok(results) => {
            for (answer, result) in answers.into_iter().zip(results) {
                // The one who asked may have gone.
                let _ = answer.send(result);
            }
            Ok(())
        }
        Err(reason) => {
            for answer in answers {
                let _ = answer.send(Err(StoreError::Unavailable(reason.clone())));
            }
            Err(reason)
        }
    }
}

fn reply<T>(answer: oneshot::Sender<Result<T, StoreError>>, result: Result<T, StoreError>) -> Result<(), String> {
    let failed = match &result {
        Err(StoreError::Unavailable(reason)) => Err(reason.clone()),
        _ => Ok(()),
    };
    let _ = answer.send(result);
    failed
}

fn refuse(request: Request, reason: &str) {
    let error = StoreError::Unavailable(reason.to_owned());
    match request {
        Request::Write { answer, .. } => drop(answer.send(Err(error))),
        Request::Get { answer, .. } => drop(answer.send(Err(error))),
        Request::Load { answer, .. } => drop(answer.send(Err(error))),
    }
}

impl TaskStore for EmbeddedStore {
    fn load(&self, ended: usize) -> BoxFuture<'_, Result<Vec<Record>, StoreError>> {
        Box::pin(self.ask(move |answer| Request::Load { ended, answer }))
    }

    fn ping(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async { self.write(Write::Ping).await.map(drop) })
    }

    fn get<'a>(&'a self, task_id: &'a str) -> BoxFuture<'a, Result<Option<Record>, StoreError>> {
        Box::pin(self.ask(|answer| Request::Get { task_id: task_id.to_owned(), answer }))
    }

    /// `applied` is of no use here: a repeated entry is known by the record itself, and there is no stream to acknowledge
    /// it to.
    fn put<'a>(&'a self, record: &'a Record, _applied: Option<EntryId>) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            let json = serde_json::to_string(record)
                .map_err(|e| StoreError::Corrupt { task_id: record.task_id.clone(), reason: e.to_string() })?;
            let ended_at = record.ended_at.filter(|_| record.phase.is_terminal());
            let write = Write::Put { task_id: record.task_id.clone(), version: record.version, ended_at, json };
            self.write(write).await.map(drop)
        })
    }

    fn acknowledge<'a>(&'a self, _entry: EntryId) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async { Ok(()) })
    }

    fn remove<'a>(&'a self, task_id: &'a str, version: u64) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move { self.write(Write::Remove { task_id: task_id.to_owned(), version }).await.map(drop) })
    }

    fn expire(&self, before: Millis, limit: usize) -> BoxFuture<'_, Result<usize, StoreError>> {
        Box::pin(self.write(Write::Expire { before, limit }))
    }
}

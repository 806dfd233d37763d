//! What one segment (or one group commit) adds to what is known, in memory until it is in the index.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::sync::Arc;

use otto_proto::v1::WorkerEvent;
use prost::Message;

use crate::rows::{Entry, RunRow, TaskRow};
use crate::types::RunKey;

/// Everything a segment holds, without the lines.
#[derive(Debug, Default)]
pub(crate) struct Layer {
    pub(crate) segment: u64,
    pub(crate) generation: u32,
    /// Open for reading.
    pub(crate) file: Option<Arc<File>>,
    /// Bytes of the file.
    pub(crate) bytes: u64,
    pub(crate) runs: HashMap<u64, LayerRun>,
    pub(crate) tasks: HashMap<Arc<str>, LayerTask>,
    /// Runs made in this layer.
    pub(crate) keys: HashMap<Arc<RunKey>, u64>,
    /// Task and worker of runs made in this layer, with the newest of them.
    pub(crate) workers: HashMap<(u64, Box<str>), u64>,
    /// Tasks removed in this layer, by number; the name may be in use again.
    pub(crate) removed_tasks: Vec<(u64, Arc<str>)>,
    /// Stored bytes were found damaged: the segment is kept as it is.
    pub(crate) damaged: bool,
    /// By the store's clock; 0: nothing is stored.
    pub(crate) oldest: i64,
    pub(crate) newest: i64,
    /// About the memory this takes, bytes.
    pub(crate) weight: usize,
}

/// What a layer knows of a run.
#[derive(Debug)]
pub(crate) struct LayerRun {
    pub(crate) row: RunRow,
    /// In order, without holes but those that are entries themselves.
    pub(crate) entries: Vec<Entry>,
    /// Made in this layer: no older one knows it.
    pub(crate) created: bool,
}

/// What a layer knows of a task.
#[derive(Debug)]
pub(crate) struct LayerTask {
    pub(crate) row: TaskRow,
    pub(crate) events: Vec<(u64, WorkerEvent)>,
    pub(crate) event_ids: HashSet<Box<str>>,
    /// Runs that were made, written to or changed in this layer.
    pub(crate) runs: Vec<u64>,
    /// Something that its watchers wait for has changed.
    pub(crate) changed: bool,
}

impl LayerTask {
    /// `changed`: it is new, or gone.
    pub(crate) fn new(row: TaskRow, changed: bool) -> Self {
        Self { row, events: Vec::new(), event_ids: HashSet::new(), runs: Vec::new(), changed }
    }

    pub(crate) fn add_event(&mut self, number: u64, event: WorkerEvent) {
        self.changed = true;
        self.event_ids.insert(event.event_id.as_str().into());
        self.events.push((number, event));
    }
}

const RUN_WEIGHT: usize = 480;
const TASK_WEIGHT: usize = 400;

impl Layer {
    pub(crate) fn run(&self, id: u64) -> Option<&LayerRun> {
        self.runs.get(&id)
    }

    /// Notes when something was stored.
    pub(crate) fn stored(&mut self, at: i64) {
        if self.oldest == 0 || at < self.oldest {
            self.oldest = at;
        }
        self.newest = self.newest.max(at);
    }

    /// Adds what came after. `delta` was made on top of this layer.
    pub(crate) fn absorb(&mut self, delta: Layer) {
        for (number, name) in delta.removed_tasks {
            self.removed_tasks.push((number, name));
        }
        for (name, task) in delta.tasks {
            self.weight += task.events.iter().map(|(_, event)| 300 + 2 * event.encoded_len()).sum::<usize>();
            match self.tasks.get_mut(&name) {
                Some(known) if known.row.number == task.row.number && !task.row.removed => {
                    known.row = task.row;
                    known.events.extend(task.events);
                    known.event_ids.extend(task.event_ids);
                }
                Some(known) => *known = task,
                None => {
                    self.weight += TASK_WEIGHT;
                    self.tasks.insert(name, task);
                }
            }
        }
        for (id, run) in delta.runs {
            self.weight += run.entries.len() * size_of::<Entry>();
            match self.runs.get_mut(&id) {
                Some(known) => {
                    if run.row.removed {
                        known.entries = Vec::new();
                    }
                    known.row = run.row;
                    known.entries.extend(run.entries);
                }
                None => {
                    self.weight += RUN_WEIGHT;
                    if let Some(task) = self.tasks.get_mut(&*run.row.key.task_id)
                        && task.row.number == run.row.task
                    {
                        task.runs.push(id);
                    }
                    self.runs.insert(id, run);
                }
            }
        }
        self.keys.extend(delta.keys);
        self.workers.extend(delta.workers);
        self.damaged |= delta.damaged;
        if delta.newest > 0 {
            self.stored(delta.oldest);
            self.stored(delta.newest);
        }
    }

    /// Lines and payload bytes stored here of a run, and the sequence after the last one.
    pub(crate) fn totals(run: &LayerRun) -> (u64, u64, u64) {
        let end = run.entries.last().map_or(0, |entry| entry.end);
        let lines = run.entries.iter().map(Entry::lines).sum();
        let bytes = run.entries.iter().map(|entry| u64::from(entry.payload_bytes)).sum();
        (end, lines, bytes)
    }
}

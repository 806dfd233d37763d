//! What is stored, newest first: the active segment's layer, those of sealed segments that are not in the index yet, the
//! index. Only the writer changes the active layer; only the sealer moves layers into the index.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fs::File;
use std::sync::Arc;

use otto_proto::v1::{FinishRun, WorkerEvent};

use crate::index::{Index, IndexError, Reader};
use crate::layer::{Layer, LayerTask};
use crate::rows::{Entry, RunRow, TaskRow};
use crate::types::{RunKey, TaskPage};

/// What a reader meets next in a run, as far as memory knows.
#[derive(Debug)]
pub(crate) enum Step {
    /// No such run.
    Unknown,
    /// Everything up to here was removed by retention.
    Expired(u64),
    /// Sequences up to here (exclusive) are missing and nothing says why.
    Hole(u64),
    /// A block or gap, and its file if that is open.
    Entry(Entry, Option<Arc<File>>),
    /// Nothing more is stored.
    End(Option<Arc<FinishRun>>),
}

pub(crate) struct Catalogue {
    pub(crate) active: Layer,
    /// Oldest first.
    pub(crate) frozen: VecDeque<Arc<Layer>>,
    pub(crate) index: Arc<Index>,
    pub(crate) next_run: u64,
    pub(crate) next_task: u64,
}

impl Catalogue {
    /// Newest first.
    pub(crate) fn layers(&self) -> impl DoubleEndedIterator<Item = &Layer> {
        self.frozen.iter().map(|layer| &**layer).chain(std::iter::once(&self.active)).rev()
    }

    /// The newest row in memory; a removed one says so.
    pub(crate) fn run_in_memory(&self, id: u64) -> Option<&RunRow> {
        self.layers().find_map(|layer| layer.run(id)).map(|run| &run.row)
    }

    /// The newest row of a run that exists.
    pub(crate) fn run(&self, id: u64) -> Result<Option<RunRow>, IndexError> {
        match self.run_in_memory(id) {
            Some(row) => Ok((!row.removed).then(|| row.clone())),
            None => self.index.reader()?.run(id),
        }
    }

    pub(crate) fn task_in_memory(&self, name: &str) -> Option<&TaskRow> {
        self.layers().find_map(|layer| layer.tasks.get(name)).map(|task| &task.row)
    }

    /// The newest row of a task that exists.
    pub(crate) fn task(&self, name: &str) -> Result<Option<TaskRow>, IndexError> {
        match self.task_in_memory(name) {
            Some(row) => Ok((!row.removed).then(|| row.clone())),
            None => self.index.reader()?.task(name),
        }
    }

    /// What finds the newest row of a run once the lock is released.
    pub(crate) fn run_lookup(&self, id: u64) -> Result<RunLookup, IndexError> {
        Ok(RunLookup { id, in_memory: self.run_in_memory(id).cloned(), reader: self.index.reader()? })
    }

    /// The number of the run with this key, as far as memory knows; otherwise where to look.
    pub(crate) fn find_lookup(&self, key: &RunKey) -> Result<Result<u64, Reader>, IndexError> {
        match self.layers().find_map(|layer| layer.keys.get(key)) {
            Some(id) => Ok(Ok(*id)),
            None => Ok(Err(self.index.reader()?)),
        }
    }

    /// The number of the run with this key, if it exists.
    pub(crate) fn find(&self, key: &RunKey) -> Result<Option<u64>, IndexError> {
        let found = match self.layers().find_map(|layer| layer.keys.get(key)) {
            Some(id) => Some(*id),
            None => self.index.reader()?.find(key)?,
        };
        Ok(found.filter(|id| self.run_in_memory(*id).is_none_or(|row| !row.removed)))
    }

    /// Whether the event is stored.
    pub(crate) fn has_event(&self, task: &TaskRow, event_id: &str) -> Result<bool, IndexError> {
        let known = self.task_layers(task).any(|layer| layer.event_ids.contains(event_id));
        Ok(known || self.index.reader()?.has_event(task.number, event_id)?)
    }

    fn task_layers(&self, task: &TaskRow) -> impl Iterator<Item = &LayerTask> {
        self.layers()
            .filter_map(|layer| layer.tasks.get(&task.name))
            .filter(|found| found.row.number == task.number && !found.row.removed)
    }

    /// Numbers of the task's runs, in order. Some may have been removed.
    pub(crate) fn run_ids(&self, task: &TaskRow) -> Result<BTreeSet<u64>, IndexError> {
        let mut ids: BTreeSet<u64> = self.index.reader()?.run_ids(task.number)?.into_iter().collect();
        ids.extend(self.task_layers(task).flat_map(|layer| layer.runs.iter().copied()));
        Ok(ids)
    }

    /// Everything about a task that is in memory, so that the index can be read without holding a lock.
    pub(crate) fn task_snapshot(&self, name: &str) -> Result<Option<TaskSnapshot>, IndexError> {
        let reader = self.index.reader()?;
        let row = match self.task_in_memory(name) {
            Some(row) if row.removed => return Ok(None),
            Some(row) => row.clone(),
            None => return Ok(Some(TaskSnapshot { name: name.to_owned(), row: None, ..TaskSnapshot::new(reader) })),
        };
        let mut snapshot = TaskSnapshot::new(reader);
        for layer in self.layers() {
            if let Some(task) = layer.tasks.get(name).filter(|task| task.row.number == row.number) {
                for run in task.runs.iter().filter_map(|id| layer.run(*id)) {
                    snapshot.rows.entry(run.row.id).or_insert_with(|| run.row.clone());
                }
                snapshot.events.extend(task.events.iter().cloned());
            }
        }
        snapshot.row = Some(row);
        Ok(Some(snapshot))
    }

    /// All tasks, as far as memory knows, and the index as it is now.
    pub(crate) fn tasks_snapshot(&self) -> Result<TasksSnapshot, IndexError> {
        let mut rows: HashMap<Arc<str>, TaskRow> = HashMap::new();
        for layer in self.layers() {
            for (name, task) in &layer.tasks {
                rows.entry(name.clone()).or_insert_with(|| task.row.clone());
            }
        }
        Ok(TasksSnapshot { rows, reader: self.index.reader()? })
    }

    /// The next step of a reader at (`position`, `rank`); `None`: the index must be asked, see [`Self::run_snapshot`].
    pub(crate) fn step(&self, id: u64, position: u64, rank: u8) -> Option<Step> {
        let row = self.run_in_memory(id)?;
        if let Some(step) = fixed(row, position) {
            return Some(step);
        }
        // The oldest layer that has entries: below it is the index, unless the run began there.
        let (mut created, mut any) = (false, false);
        for layer in self.layers().rev() {
            let Some(run) = layer.run(id) else { continue };
            created |= run.created;
            let Some(oldest) = run.entries.first() else { continue };
            // The index may end with a gap without an end at this very position.
            let untold = position == oldest.first && rank == 0 && oldest.rank() == 1;
            if !created && (position < oldest.first || untold) {
                return None;
            }
            any = true;
            break;
        }
        match self.entry_in_memory(id, position, rank) {
            Some((entry, file)) => Some(hole_or(entry, file, position)),
            None => (any || created).then(|| end(row, position)),
        }
    }

    fn entry_in_memory(&self, id: u64, position: u64, rank: u8) -> Option<(Entry, Option<Arc<File>>)> {
        self.layers().rev().find_map(|layer| {
            let entries = &layer.run(id)?.entries;
            let at = entries.partition_point(|entry| entry.is_before(position, rank));
            entries.get(at).map(|entry| (*entry, layer.file.clone()))
        })
    }

    /// What [`RunSnapshot::step`] needs, taken together under the lock.
    pub(crate) fn run_snapshot(&self, id: u64, position: u64, rank: u8) -> Result<RunSnapshot, IndexError> {
        Ok(RunSnapshot {
            row: self.run_in_memory(id).cloned(),
            in_memory: self.entry_in_memory(id, position, rank),
            reader: self.index.reader()?,
        })
    }

    /// Entries of a run in memory, in order.
    pub(crate) fn entries(&self, id: u64) -> impl Iterator<Item = &Entry> {
        self.layers().rev().filter_map(move |layer| layer.run(id)).flat_map(|run| run.entries.iter())
    }

    /// Entries of a run in memory, from the end back.
    pub(crate) fn entries_back(&self, id: u64) -> impl Iterator<Item = &Entry> {
        self.layers().filter_map(move |layer| layer.run(id)).flat_map(|run| run.entries.iter().rev())
    }
}

fn fixed(row: &RunRow, position: u64) -> Option<Step> {
    if row.removed {
        return Some(Step::Unknown);
    }
    (position <= row.expired_through).then_some(Step::Expired(row.expired_through))
}

fn hole_or(entry: Entry, file: Option<Arc<File>>, position: u64) -> Step {
    if entry.first > position { Step::Hole(entry.first) } else { Step::Entry(entry, file) }
}

fn end(row: &RunRow, position: u64) -> Step {
    if position < row.expected { Step::Hole(row.expected) } else { Step::End(row.finish.clone()) }
}

/// One moment of a run's row. Whoever reads the index holds no lock, so that the writer never waits for a disk.
pub(crate) struct RunLookup {
    id: u64,
    in_memory: Option<RunRow>,
    pub(crate) reader: Reader,
}

impl RunLookup {
    /// The row of a run that exists.
    pub(crate) fn row(&self) -> Result<Option<RunRow>, IndexError> {
        match &self.in_memory {
            Some(row) => Ok((!row.removed).then(|| row.clone())),
            None => self.reader.run(self.id),
        }
    }
}

/// One moment of a run, for a reader whose position is older than memory.
pub(crate) struct RunSnapshot {
    row: Option<RunRow>,
    in_memory: Option<(Entry, Option<Arc<File>>)>,
    reader: Reader,
}

impl RunSnapshot {
    /// The next steps of a reader at (`position`, `rank`): the first, and, if it is a block, up to `ahead` blocks more
    /// that follow without a hole.
    pub(crate) fn steps(&self, id: u64, position: u64, rank: u8, ahead: usize) -> Result<Vec<Step>, IndexError> {
        let row = match &self.row {
            Some(row) => row.clone(),
            None => match self.reader.run(id)? {
                Some(row) => row,
                None => return Ok(vec![Step::Unknown]),
            },
        };
        if let Some(step) = fixed(&row, position) {
            return Ok(vec![step]);
        }
        let indexed = self.reader.entries(id, position, rank, ahead + 1)?;
        let Some(first) = indexed.first() else {
            return Ok(vec![match &self.in_memory {
                Some((entry, file)) => hole_or(*entry, file.clone(), position),
                None => end(&row, position),
            }]);
        };
        if first.first > position {
            return Ok(vec![Step::Hole(first.first)]);
        }
        let mut steps = Vec::with_capacity(indexed.len());
        let mut next = first.first;
        for entry in indexed {
            if entry.first != next && !steps.is_empty() {
                break;
            }
            next = entry.end;
            steps.push(Step::Entry(entry, None));
        }
        Ok(steps)
    }
}

/// One moment of a task.
pub(crate) struct TaskSnapshot {
    name: String,
    row: Option<TaskRow>,
    rows: HashMap<u64, RunRow>,
    events: BTreeMap<u64, WorkerEvent>,
    reader: Reader,
}

impl TaskSnapshot {
    fn new(reader: Reader) -> Self {
        Self { name: String::new(), row: None, rows: HashMap::new(), events: BTreeMap::new(), reader }
    }

    pub(crate) fn row(&self) -> Result<Option<TaskRow>, IndexError> {
        match &self.row {
            Some(row) => Ok(Some(row.clone())),
            None => self.reader.task(&self.name),
        }
    }

    /// Runs that exist, in order.
    pub(crate) fn runs(&self) -> Result<Vec<RunRow>, IndexError> {
        let Some(task) = self.row()? else { return Ok(Vec::new()) };
        let mut ids: BTreeSet<u64> = self.reader.run_ids(task.number)?.into_iter().collect();
        ids.extend(self.rows.keys());
        let mut runs = Vec::with_capacity(ids.len());
        for id in ids {
            let row = match self.rows.get(&id) {
                Some(row) => Some(row.clone()),
                None => self.reader.run(id)?,
            };
            runs.extend(row.filter(|row| !row.removed));
        }
        Ok(runs)
    }

    /// Events from a number on, at most `limit`.
    pub(crate) fn events(&self, from: u64, limit: usize) -> Result<Vec<(u64, WorkerEvent)>, IndexError> {
        let Some(task) = self.row()? else { return Ok(Vec::new()) };
        let mut events = self.reader.events(task.number, from, limit)?;
        let after = events.last().map_or(from, |(number, _)| number + 1);
        events.extend(self.events.range(after..).map(|(number, event)| (*number, event.clone())));
        events.truncate(limit);
        Ok(events)
    }
}

/// One moment of all tasks.
pub(crate) struct TasksSnapshot {
    rows: HashMap<Arc<str>, TaskRow>,
    reader: Reader,
}

impl TasksSnapshot {
    pub(crate) fn page(&self, before: Option<u64>, limit: usize) -> Result<TaskPage, IndexError> {
        let before = before.unwrap_or(u64::MAX);
        let mut newest: BTreeMap<u64, TaskRow> = self
            .rows
            .values()
            .filter(|row| !row.removed && row.number < before)
            .map(|row| (row.number, row.clone()))
            .collect();
        while newest.len() > limit + 1 {
            newest.pop_first();
        }
        // The index has old rows of some of them, and removed ones: those do not count.
        self.reader.tasks_before(before, |row| {
            if !self.rows.contains_key(&row.name) {
                let number = row.number;
                newest.insert(number, row);
                if newest.len() > limit + 1 {
                    return newest.pop_first().is_some_and(|(popped, _)| popped != number);
                }
            }
            true
        })?;
        let more = newest.len() > limit;
        let tasks: Vec<TaskRow> = newest.into_values().rev().take(limit).collect();
        let next = if more { tasks.last().map(|row| row.number) } else { None };
        Ok(TaskPage { tasks: tasks.iter().map(TaskRow::info).collect(), next })
    }
}

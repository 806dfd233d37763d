use std::collections::HashMap;
use std::sync::Arc;

use prost::Message;
use redb::{ReadableTable, WriteTransaction};

use super::{
    BLOCKS, EVENT_IDS, EVENTS, Index, KEYS, Layer, META, Meta, RUNS, Result, SEGMENT_EVENTS, SEGMENT_RUNS,
    SEGMENT_TASKS, SEGMENTS, TASK_NAMES, TASK_RUNS, TASKS, storage,
};
use crate::layer::{LayerRun, LayerTask};
use crate::rows::{Entry, RunRow, TaskRow};

/// What took the place of a layer's file and blocks.
#[derive(Debug)]
pub(crate) struct Merged {
    pub(crate) generation: u32,
    pub(crate) bytes: u64,
    /// Of each run of the layer that exists.
    pub(crate) entries: HashMap<u64, Vec<Entry>>,
}

/// What goes when a segment is removed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Expiry {
    pub(crate) segment: u64,
    /// Run, sequence after its last one in the segment (0: no lines), lines, payload bytes.
    pub(crate) runs: Vec<(u64, u64, u64, u64)>,
    /// Tasks with a record in the segment.
    pub(crate) tasks: Vec<Arc<str>>,
}

impl Index {
    /// Takes over a sealed segment in one durable transaction.
    pub(crate) fn commit_layer(&self, layer: &Layer, merged: Option<&Merged>, meta: Meta) -> Result<()> {
        let transaction = self.database()?.begin_write()?;
        for (number, name) in &layer.removed_tasks {
            remove_task(&transaction, *number, name)?;
        }
        for task in layer.tasks.values().filter(|task| !task.row.removed) {
            put_task(&transaction, layer.segment, task)?;
        }
        put_runs(&transaction, layer, merged)?;
        {
            let mut segments = transaction.open_table(SEGMENTS)?;
            let (generation, bytes) = merged.map_or((layer.generation, layer.bytes), |new| (new.generation, new.bytes));
            segments.insert(layer.segment, (generation, bytes, layer.oldest as u64, layer.newest as u64))?;
            let mut table = transaction.open_table(META)?;
            table.insert("covered", meta.covered)?;
            table.insert("next_run", meta.next_run)?;
            table.insert("next_task", meta.next_task)?;
        }
        transaction.commit()?;
        Ok(())
    }

    /// Forgets a segment: where its blocks are, its events, the segment itself. Runs and tasks stay as they are.
    pub(crate) fn forget_segment(&self, expiry: &Expiry) -> Result<()> {
        let transaction = self.database()?.begin_write()?;
        let segment = expiry.segment;
        {
            let mut blocks = transaction.open_table(BLOCKS)?;
            for (run, end, ..) in &expiry.runs {
                // Oldest segments go first, so its entries are the first ones of the run.
                let mut gone = Vec::new();
                for item in blocks.range((*run, 0, 0)..(*run, *end, 1))? {
                    let (key, value) = item?;
                    let entry = Entry::decode(key.value().1, value.value());
                    if entry.segment == segment {
                        gone.push(key.value());
                    }
                }
                for key in gone {
                    blocks.remove(key)?;
                }
            }
            let mut segment_events = transaction.open_table(SEGMENT_EVENTS)?;
            let mut events = transaction.open_table(EVENTS)?;
            let mut ids = transaction.open_table(EVENT_IDS)?;
            let mut gone = Vec::new();
            for item in segment_events.range((segment, 0, 0)..=(segment, u64::MAX, u64::MAX))? {
                gone.push(item?.0.value());
            }
            for (segment, task, number) in gone {
                if let Some(value) = events.remove((task, number))?
                    && let Ok(event) = otto_proto::v1::WorkerEvent::decode(value.value())
                {
                    ids.remove((task, event.event_id.as_str()))?;
                }
                segment_events.remove((segment, task, number))?;
            }
            transaction.open_table(SEGMENT_RUNS)?.retain_in((segment, 0)..=(segment, u64::MAX), |_, _| false)?;
            transaction.open_table(SEGMENT_TASKS)?.retain_in((segment, 0)..=(segment, u64::MAX), |_, _| false)?;
            transaction.open_table(SEGMENTS)?.remove(segment)?;
        }
        transaction.commit()?;
        Ok(())
    }
}

fn remove_task(transaction: &WriteTransaction, number: u64, name: &str) -> Result<()> {
    transaction.open_table(TASK_NAMES)?.remove(number)?;
    transaction.open_table(TASK_RUNS)?.retain_in((number, 0)..=(number, u64::MAX), |_, _| false)?;
    transaction.open_table(EVENTS)?.retain_in((number, 0)..=(number, u64::MAX), |_, _| false)?;
    let mut ids = transaction.open_table(EVENT_IDS)?;
    let mut gone: Vec<String> = Vec::new();
    for item in ids.range((number, "")..(number + 1, ""))? {
        gone.push(item?.0.value().1.to_owned());
    }
    for id in gone {
        ids.remove((number, id.as_str()))?;
    }
    let mut tasks = transaction.open_table(TASKS)?;
    let same =
        tasks.get(name)?.and_then(|value| TaskRow::decode(value.value())).is_some_and(|row| row.number == number);
    if same {
        tasks.remove(name)?;
    }
    Ok(())
}

fn put_task(transaction: &WriteTransaction, segment: u64, task: &LayerTask) -> Result<()> {
    let mut row = task.row.clone();
    row.last_segment = segment;
    transaction.open_table(TASKS)?.insert(&*row.name, &row.encode()[..])?;
    transaction.open_table(TASK_NAMES)?.insert(row.number, &*row.name)?;
    transaction.open_table(SEGMENT_TASKS)?.insert((segment, row.number), ())?;
    let mut events = transaction.open_table(EVENTS)?;
    let mut ids = transaction.open_table(EVENT_IDS)?;
    let mut in_segment = transaction.open_table(SEGMENT_EVENTS)?;
    for (number, event) in &task.events {
        events.insert((row.number, *number), &event.encode_to_vec()[..])?;
        ids.insert((row.number, event.event_id.as_str()), *number)?;
        in_segment.insert((segment, row.number, *number), ())?;
    }
    Ok(())
}

fn put_runs(transaction: &WriteTransaction, layer: &Layer, merged: Option<&Merged>) -> Result<()> {
    let mut runs = transaction.open_table(RUNS)?;
    let mut keys = transaction.open_table(KEYS)?;
    let mut task_runs = transaction.open_table(TASK_RUNS)?;
    let mut blocks = transaction.open_table(BLOCKS)?;
    let mut segment_runs = transaction.open_table(SEGMENT_RUNS)?;
    let mut ordered: Vec<&LayerRun> = layer.runs.values().collect();
    ordered.sort_unstable_by_key(|run| run.row.id);
    for run in ordered {
        let RunRow { id, task, .. } = run.row;
        let key = &run.row.key;
        let parts = (&*key.task_id, &*key.worker_id, &*key.run_id);
        if run.row.removed {
            runs.remove(id)?;
            task_runs.remove((task, id))?;
            blocks.retain_in((id, 0, 0)..=(id, u64::MAX, u8::MAX), |_, _| false).map_err(storage)?;
            let same = keys.get(parts)?.is_some_and(|value| value.value() == id);
            if same {
                keys.remove(parts)?;
            }
            continue;
        }
        let mut row = run.row.clone();
        row.last_segment = layer.segment;
        runs.insert(id, &row.encode(false)[..])?;
        keys.insert(parts, id)?;
        task_runs.insert((task, id), ())?;
        let entries = match merged {
            Some(merged) => merged.entries.get(&id),
            None => Some(&run.entries),
        };
        for entry in entries.into_iter().flatten() {
            blocks.insert((id, entry.first, entry.rank()), &entry.encode())?;
        }
        segment_runs.insert((layer.segment, id), Layer::totals(run))?;
    }
    Ok(())
}

//! `StreamLogs`: one line per message.
//!
//! Lines are collected while the store is busy with those before (at most [`IN_FLIGHT`] records), so blocks grow with
//! the load and a single line is never made to wait.

use std::pin::Pin;
use std::task::{Context as TaskContext, Poll};
use std::time::{Duration, Instant, SystemTime};

use futures::{Stream, StreamExt};
use otto_log_store::{RunId, StoreError};
use otto_proto::v1::log_response::Status;
use otto_proto::v1::{LogEntry, LogResponse};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use super::assembler::{Assembler, BLOCK_BYTES, Note, check_ids};
use super::outbox::{Answer, Outbox, Reply, step};
use super::writer::{Settled, What, Writer};
use super::{Context, End, NameSpan, assembler};
use crate::metrics::{Dropped, Retry};
use crate::registry::Session;

/// Records of a stream that are queued in the store at once, as long as they are small. Two: one being written, one
/// waiting for the next group commit.
const IN_FLIGHT: usize = 2;
/// A record of at least so many bytes is queued whatever else is.
const WORTHWHILE: usize = 64 << 10;
/// Bytes of lines collected at most from a client that cannot send again while there is little memory.
const SCARCE_BYTES: usize = 4 << 10;
/// Entries read at most before others get their turn.
const TURN: usize = 4096;

impl Reply for LogResponse {
    fn take(answer: &mut Answer) -> (Self, bool) {
        let response = |status: Status, sequence: u64, message: &str, delay_ms: u32| LogResponse {
            status: status.into(),
            message: message.to_owned(),
            sequence: sequence.cast_signed(),
            retry_delay_ms: i32::try_from(delay_ms).unwrap_or(i32::MAX),
        };
        match answer {
            Answer::AckEach { next, last } => {
                let (sequence, over) = step(next, *last);
                (response(Status::Ack, sequence, "", 0), over)
            }
            Answer::Ack { sequence } => (response(Status::Ack, *sequence, "", 0), true),
            Answer::Retry { sequence, delay_ms, message } => {
                (response(Status::Retry, *sequence, message, *delay_ms), true)
            }
            Answer::RetryEach { next, last, delay_ms, message } => {
                let (sequence, over) = step(next, *last);
                (response(Status::Retry, sequence, message, *delay_ms), over)
            }
            Answer::DropEach { next, last, message } => {
                let (sequence, over) = step(next, *last);
                (response(Status::Drop, sequence, message, 0), over)
            }
            // Never pushed on such a stream.
            Answer::Opened(_) | Answer::Finished(_) => (Self::default(), true),
        }
    }
}

/// Runs a session to its end, and tells the outbox how it ended.
pub(crate) async fn run<S, E>(context: Context, input: S, outbox: Outbox, gone: CancellationToken)
where
    S: Stream<Item = Result<LogEntry, E>> + Unpin,
    E: Into<End>,
{
    let end = serve(&context, input, &outbox, &gone).await;
    if let Err(end) = &end {
        tracing::debug!(%end, "stream of entries ended");
    }
    outbox.end(end);
}

async fn serve<S, E>(context: &Context, mut input: S, outbox: &Outbox, gone: &CancellationToken) -> Result<(), End>
where
    S: Stream<Item = Result<LogEntry, E>> + Unpin,
    E: Into<End>,
{
    let _open = context.registry.open();
    let first = tokio::select! {
        biased;
        () = context.drain.cancelled() => return Err(End::draining()),
        () = gone.cancelled() => return Err(End::Gone),
        first = input.next() => match first {
            Some(first) => first.map_err(Into::into)?,
            None => return Ok(()),
        },
    };
    // Whoever says nothing takes nobody's place.
    let _place = context
        .registry
        .admit()
        .map_err(|limit| End::Exhausted { limit: "max-sessions", description: format!("{limit} streams are open") })?;
    check_ids(&first)?;
    let (run, session) = enter(context, &first).await?;
    let state = context
        .store
        .run(run)
        .await
        .map_err(|error| End::Unavailable { retry_after: Duration::from_secs(1), message: error.to_string() })?
        .ok_or_else(|| End::not_registered(&first.task_id, &first.worker_id))?;
    if state.finish.is_some() {
        return Err(End::finished());
    }
    let stream = assembler::Stream {
        task_id: first.task_id.clone(),
        worker_id: first.worker_id.clone(),
        numbered: first.sequence.is_some(),
    };
    state.key.name_span();
    tracing::debug!("stream of entries began");
    let max_line_bytes = context.limits.max_line_bytes.as_usize();
    let mut entries = Entries {
        context,
        outbox,
        writer: Writer::new(context, run, state.expected),
        intake: Intake {
            context,
            outbox,
            assembler: Assembler::new(stream, max_line_bytes, state.expected),
            collected: None,
            short: false,
            refusing: None,
            ended: None,
        },
    };
    if let Err(end) = entries.intake.accept(first, now_unix_nanos()) {
        entries.intake.ended = Some(Err(end));
    }
    entries.tell();
    entries.serve(input, session, gone).await
}

/// The newest run of the entry's worker, and the right to write it.
async fn enter(context: &Context, first: &LogEntry) -> Result<(RunId, Session), End> {
    let (task_id, worker_id) = (&first.task_id, &first.worker_id);
    let run = match context.registry.run_of(task_id, worker_id) {
        Some(run) => run,
        // Registered before this server began, or so long ago that it was forgotten.
        None => context
            .store
            .runs(task_id)
            .await
            .map_err(|error| End::Unavailable { retry_after: Duration::from_secs(1), message: error.to_string() })?
            .iter()
            .rfind(|run| run.key.worker_id == *worker_id)
            .map(|run| run.id)
            .ok_or_else(|| End::not_registered(task_id, worker_id))?,
    };
    Ok((run, context.registry.enter(run).await))
}

/// The reading half of a session.
struct Intake<'a> {
    context: &'a Context,
    outbox: &'a Outbox,
    assembler: Assembler,
    /// Memory of what is in the assembler.
    collected: Option<OwnedSemaphorePermit>,
    /// There is no memory for more.
    short: bool,
    /// Nothing is tried before: the store could not take more, and the client was told when to come back.
    refusing: Option<(Instant, Refusal)>,
    /// Nothing more is read.
    ended: Option<Result<(), End>>,
}

/// Why lines must be sent again.
#[derive(Clone, Copy, Debug)]
enum Refusal {
    DiskFull,
    Busy,
}

impl Intake<'_> {
    /// Reads what is there: ready when anything was read; the flag tells that there may be more.
    fn poll_fill<S, E>(&mut self, cx: &mut TaskContext<'_>, input: &mut S) -> Poll<bool>
    where
        S: Stream<Item = Result<LogEntry, E>> + Unpin,
        E: Into<End>,
    {
        let (now, enough) = (now_unix_nanos(), self.enough());
        for read in 0..TURN {
            let entry = match Pin::new(&mut *input).poll_next(cx) {
                Poll::Pending if read == 0 => return Poll::Pending,
                Poll::Pending => return Poll::Ready(false),
                Poll::Ready(entry) => entry,
            };
            let ended = match entry {
                Some(Ok(entry)) => self.accept(entry, now).map_or_else(|end| Some(Err(end)), |()| None),
                Some(Err(error)) => Some(Err(error.into())),
                None => Some(Ok(())),
            };
            if ended.is_some() {
                self.ended = ended;
                return Poll::Ready(false);
            }
            if self.assembler.open_bytes() >= enough || self.assembler.is_noisy() {
                break;
            }
        }
        Poll::Ready(true)
    }

    fn accept(&mut self, entry: LogEntry, now: i64) -> Result<(), End> {
        if let Some((until, refusal)) = self.refusing {
            if Instant::now() < until {
                let next = self.assembler.next();
                match entry.sequence {
                    // What does not fit is told as always: once, not for every entry that follows.
                    Some(sequence) if self.assembler.numbered() && sequence != next => {
                        return self.assembler.accept(entry, now);
                    }
                    sequence => {
                        self.assembler.check(&entry)?;
                        if sequence.is_some() {
                            self.assembler.pass_over(next + 1);
                        }
                    }
                }
                self.retry(next, next + 1, refusal);
                return Ok(());
            }
            self.refusing = None;
        }
        self.assembler.accept(entry, now)
    }

    /// Accounts for the memory of what is collected. What there is no memory for is given back at once. A client that does
    /// not number is owed answers in order, so it waits instead, and before that little is read at once.
    fn charge(&mut self) {
        self.short = !self.context.memory.adjust(&mut self.collected, self.assembler.bytes());
        if self.short && self.assembler.numbered() {
            let (first, end) = self.assembler.collected();
            self.refuse(first, end, Refusal::Busy);
            (self.collected, self.short) = (None, false);
        }
    }

    /// Bytes collected at most.
    fn enough(&self) -> usize {
        let scarce = !self.assembler.numbered() && self.context.memory.is_below(BLOCK_BYTES);
        if scarce { SCARCE_BYTES } else { BLOCK_BYTES }
    }

    /// The store did not take the lines from `first` to before `end`, nor what was collected behind them.
    fn refuse(&mut self, first: u64, end: u64, refusal: Refusal) {
        let (_, collected) = self.assembler.rewind(first);
        self.refusing = Some((Instant::now() + self.delay(refusal), refusal));
        self.retry(first, end.max(collected), refusal);
    }

    /// The lines from `next` to before `end` must be sent again.
    fn retry(&mut self, next: u64, end: u64, refusal: Refusal) {
        let delay_ms = u32::try_from(self.delay(refusal).as_millis()).unwrap_or(u32::MAX);
        let (reason, message) = match refusal {
            Refusal::DiskFull => (Retry::DiskFull, "the log server's disk is full"),
            Refusal::Busy => (Retry::Busy, "too much is waiting to be written"),
        };
        self.context.metrics.retry(reason);
        if self.assembler.numbered() {
            self.outbox.push(Answer::Retry { sequence: next, delay_ms, message });
        } else if end > next {
            self.outbox.push(Answer::RetryEach { next, last: end - 1, delay_ms, message });
        }
    }

    fn delay(&self, refusal: Refusal) -> Duration {
        match refusal {
            Refusal::DiskFull => self.context.limits.disk_full_delay,
            Refusal::Busy => self.context.limits.busy_delay,
        }
    }
}

struct Entries<'a> {
    context: &'a Context,
    outbox: &'a Outbox,
    writer: Writer,
    intake: Intake<'a>,
}

impl Entries<'_> {
    async fn serve<S, E>(&mut self, mut input: S, session: Session, gone: &CancellationToken) -> Result<(), End>
    where
        S: Stream<Item = Result<LogEntry, E>> + Unpin,
        E: Into<End>,
    {
        let stream_bytes = self.context.limits.stream_in_flight_bytes.as_usize();
        loop {
            self.submit();
            self.intake.charge();
            self.outbox.set_busy(!self.writer.is_idle() || !self.intake.assembler.is_empty());
            if let Some(ended) = &self.intake.ended
                && self.intake.assembler.is_empty()
                && self.writer.is_idle()
            {
                return ended.clone();
            }
            let (open, room, held) = (self.intake.ended.is_none(), self.outbox.has_room(), self.writer.held_since());
            let reads = open
                && room
                && held.is_none()
                && !self.intake.short
                && self.intake.assembler.open_bytes() < BLOCK_BYTES
                && self.writer.bytes() < stream_bytes;
            // A client that numbers can send again; one that does not is slowed by the transport alone.
            let patience =
                held.filter(|_| self.intake.assembler.numbered()).map(|since| since + self.context.limits.busy_wait);
            tokio::select! {
                biased;
                // What was received is stored in every case: the next session goes on behind it.
                () = gone.cancelled(), if open => self.intake.ended = Some(Err(End::Gone)),
                () = session.taken_over(), if open => self.intake.ended = Some(Err(End::TakenOver)),
                () = self.context.drain.cancelled(), if open => self.intake.ended = Some(Err(End::draining())),
                settled = self.writer.settled() => {
                    let mut settled = Some(settled);
                    while let Some(one) = settled {
                        self.on_settled(one).await?;
                        settled = self.writer.settled_now();
                    }
                }
                () = self.context.store.ready(), if held.is_some() => self.writer.pump(),
                () = sleep_until(patience), if patience.is_some() => {
                    if let Some((first, end)) = self.writer.release() {
                        self.intake.refuse(first, end, Refusal::Busy);
                    }
                }
                () = self.outbox.room(), if !room => {}
                full = std::future::poll_fn(|cx| self.intake.poll_fill(cx, &mut input)), if reads => {
                    self.tell();
                    if full {
                        tokio::task::yield_now().await;
                    }
                }
            }
        }
    }

    /// Queues what is worth it.
    fn submit(&mut self) {
        while !self.writer.is_held() {
            let assembler = &mut self.intake.assembler;
            let ripe = self.writer.pending() < IN_FLIGHT || assembler.open_bytes() >= WORTHWHILE;
            let submission = if ripe { assembler.take() } else { assembler.take_finished() };
            let Some(submission) = submission else { return };
            if !self.writer.push(submission)
                && self.intake.assembler.numbered()
                && let Some((first, end)) = self.writer.release()
            {
                self.intake.refuse(first, end, Refusal::Busy);
            }
        }
    }

    /// Tells what needs no disk.
    fn tell(&mut self) {
        let (notes, duplicates) = self.intake.assembler.take_notes();
        if duplicates > 0 {
            self.context.metrics.duplicate_lines.inc_by(duplicates);
        }
        for note in notes {
            match note {
                // What is not on disk yet is acknowledged when it is.
                Note::Duplicate if self.writer.is_idle() && self.intake.assembler.is_empty() => self.acknowledge(),
                Note::Duplicate => {}
                Note::Hole => {
                    self.context.metrics.retry(Retry::Hole);
                    let sequence = self.intake.assembler.next();
                    self.outbox.push(Answer::Retry { sequence, delay_ms: 0, message: "lines before it are missing" });
                }
                Note::Foreign { sequence, message } => {
                    self.context.metrics.dropped(Dropped::Foreign, 1);
                    self.outbox.push(Answer::DropEach { next: sequence, last: sequence, message });
                }
            }
        }
    }

    fn acknowledge(&self) {
        self.outbox.push(Answer::Ack { sequence: self.writer.durable() - 1 });
    }

    async fn on_settled(&mut self, settled: Settled) -> Result<(), End> {
        let (next, last) = (settled.first, settled.end - 1);
        match &settled.result {
            Ok(()) => match &settled.what {
                What::Lines if self.intake.assembler.numbered() => self.acknowledge(),
                What::Lines => self.outbox.push(Answer::AckEach { next, last }),
                What::Refused(message) => {
                    self.context.metrics.dropped(Dropped::Refused, last + 1 - next);
                    self.outbox.push(Answer::DropEach { next, last, message: message.clone() });
                }
                // Entries make no other records.
                What::Gap | What::Finish => {}
            },
            Err(error @ (StoreError::DiskFull | StoreError::Busy)) => {
                let refusal = if *error == StoreError::Busy { Refusal::Busy } else { Refusal::DiskFull };
                let (first, end) = self.writer.rewind(&settled).await;
                self.intake.refuse(first, end, refusal);
            }
            // Somebody else writes this run: that session goes on.
            Err(StoreError::Sequence { .. }) => return Err(End::TakenOver),
            Err(error) => return Err(End::from_store(error.clone(), self.context.limits.disk_full_delay)),
        }
        Ok(())
    }
}

/// Waits for a point in time; for ever if there is none.
pub(crate) async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

pub(crate) fn now_unix_nanos() -> i64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
}

//! `StreamLogBatches` and `UploadLogs`: many lines per message, stored as they came.

mod order;

use std::pin::pin;
use std::time::{Duration, Instant};

use futures::{Stream, StreamExt};
use otto_log_store::{MAX_BODY, Record, RunInfo, StoreError};
use otto_proto::block::{MAX_LINES, MAX_PAYLOAD_BYTES};
use otto_proto::v1::log_batch_request::Kind;
use otto_proto::v1::log_batch_response::Kind as Reply;
use otto_proto::v1::log_gap::Reason;
use otto_proto::v1::{
    FinishRun, LogBatchRequest, LogBatchResponse, LogBlock, LogGap, RunAck, RunDrop, RunFinished, RunOpened, RunRetry,
    UploadLogsResponse,
};
use tokio_util::sync::CancellationToken;

use super::entries::sleep_until;
use super::numbering::{Holes, Place, place, tail};
use super::opening::{enter, lost};
use super::outbox::{self, Answer, Outbox};
use super::writer::{Settled, Submission, What, Writer};
use super::{Context, End, NameSpan};
use crate::metrics::{Dropped, Retry};
use crate::registry::Session;

/// Records of a stream that are queued in the store at once.
const IN_FLIGHT: usize = 256;

impl outbox::Reply for LogBatchResponse {
    fn take(answer: &mut Answer) -> (Self, bool) {
        let kind = match answer {
            Answer::Opened(opened) => Reply::Opened(*opened),
            Answer::Ack { sequence } => Reply::Ack(RunAck { sequence: *sequence }),
            Answer::AckEach { last, .. } => Reply::Ack(RunAck { sequence: *last }),
            Answer::Retry { sequence, delay_ms, message }
            | Answer::RetryEach { next: sequence, delay_ms, message, .. } => {
                Reply::Retry(RunRetry { sequence: *sequence, delay_ms: *delay_ms, message: (*message).to_owned() })
            }
            Answer::DropEach { next, last, message } => {
                Reply::Drop(RunDrop { first_sequence: *next, last_sequence: *last, message: message.to_string() })
            }
            Answer::Finished(finished) => Reply::Finished(*finished),
        };
        (Self { kind: Some(kind) }, true)
    }
}

/// Runs a `StreamLogBatches` session to its end, and tells the outbox how it ended.
pub(crate) async fn run<S, E>(context: Context, input: S, outbox: Outbox, gone: CancellationToken)
where
    S: Stream<Item = Result<LogBatchRequest, E>> + Unpin,
    E: Into<End>,
{
    let end = serve(&context, input, Some(&outbox), &gone).await.map(drop);
    if let Err(end) = &end {
        tracing::debug!(%end, "stream of batches ended");
    }
    outbox.end(end);
}

/// Runs an `UploadLogs` session to its end.
pub(crate) async fn upload<S, E>(context: Context, input: S) -> Result<UploadLogsResponse, End>
where
    S: Stream<Item = Result<LogBatchRequest, E>> + Unpin,
    E: Into<End>,
{
    serve(&context, input, None, &CancellationToken::new()).await
}

async fn serve<S, E>(
    context: &Context,
    mut input: S,
    outbox: Option<&Outbox>,
    gone: &CancellationToken,
) -> Result<UploadLogsResponse, End>
where
    S: Stream<Item = Result<LogBatchRequest, E>> + Unpin,
    E: Into<End>,
{
    let _open = context.registry.open();
    let _place = context
        .registry
        .admit()
        .map_err(|limit| End::Exhausted { limit: "max-sessions", description: format!("{limit} streams are open") })?;
    let first = tokio::select! {
        biased;
        () = context.drain.cancelled() => return Err(End::draining()),
        () = gone.cancelled() => return Err(End::Gone),
        first = input.next() => first,
        () = tokio::time::sleep(context.limits.open_timeout) => {
            return Err(End::Late("no `open` came in time"));
        }
    };
    let open = match first {
        Some(Ok(LogBatchRequest { kind: Some(Kind::Open(open)) })) => open,
        Some(Ok(_)) => {
            return Err(End::Invalid { field: "kind", description: "the first message must be `open`".to_owned() });
        }
        Some(Err(error)) => return Err(error.into()),
        None => {
            return Err(End::Invalid { field: "kind", description: "the stream ended before its `open`".to_owned() });
        }
    };
    let (session, run) = enter(context, &open).await?;
    run.key.name_span();
    tracing::debug!(expected = run.expected, "stream of batches began");
    let finished = run.finish.is_some();
    let mut expected = run.expected;
    if open.first_available > expected && !finished {
        expected = lost(context, &run, open.first_available).await?;
    }
    if let Some(outbox) = outbox {
        let config = Some(context.logging_config());
        outbox.push(Answer::Opened(RunOpened { expected_sequence: expected, config, finished }));
    }
    let mut batches = Batches {
        context,
        outbox,
        writer: Writer::new(context, run.id, expected),
        run,
        expected,
        finished,
        finishing: finished,
        holes: Holes::default(),
        refusing: None,
        refusals: 0,
        owed: None,
        ended: None,
        duplicates: 0,
    };
    batches.serve(input, session, gone).await?;
    let missing_lines = batches.missing_lines().await?;
    Ok(UploadLogsResponse {
        stored_sequence: batches.writer.durable() - 1,
        duplicate_lines: batches.duplicates,
        finished: batches.finished,
        missing_lines,
    })
}

struct Batches<'a> {
    context: &'a Context,
    /// `None`: an upload, which is answered at its end.
    outbox: Option<&'a Outbox>,
    writer: Writer,
    run: RunInfo,
    /// Sequence after what was given to the writer.
    expected: u64,
    /// The Finish is on disk.
    finished: bool,
    /// The Finish was given to the writer, or is on disk.
    finishing: bool,
    holes: Holes,
    /// Nothing is tried before.
    refusing: Option<(Instant, StoreError)>,
    /// How often the store did not take what it was given.
    refusals: u64,
    /// A gap of unknown end that the store did not take. Its number does not tell whether it is missing, so nothing is
    /// stored behind it before it is, whether its client sends it again or not.
    owed: Option<LogGap>,
    ended: Option<Result<(), End>>,
    duplicates: u64,
}

impl Batches<'_> {
    async fn serve<S, E>(&mut self, input: S, session: Session, gone: &CancellationToken) -> Result<(), End>
    where
        S: Stream<Item = Result<LogBatchRequest, E>> + Unpin,
        E: Into<End>,
    {
        let stream_bytes = self.context.limits.stream_in_flight_bytes.as_usize();
        let mut input = pin!(input);
        loop {
            if let Some(outbox) = self.outbox {
                outbox.set_busy(!self.writer.is_idle());
            }
            if let Some(ended) = &self.ended
                && self.writer.is_idle()
            {
                return ended.clone();
            }
            let (open, held) = (self.ended.is_none(), self.writer.held_since());
            let room = self.outbox.is_none_or(Outbox::has_room);
            let reads = open
                && room
                && held.is_none()
                && self.writer.bytes() < stream_bytes
                && self.writer.pending() < IN_FLIGHT;
            let patience = self.patience();
            tokio::select! {
                biased;
                () = gone.cancelled(), if open => self.ended = Some(Err(End::Gone)),
                () = session.taken_over(), if open => self.ended = Some(Err(End::TakenOver)),
                () = self.context.drain.cancelled(), if open => self.ended = Some(Err(End::draining())),
                settled = self.writer.settled() => {
                    let mut settled = Some(settled);
                    while let Some(one) = settled {
                        self.on_settled(one).await?;
                        settled = self.writer.settled_now();
                    }
                }
                () = self.context.store.ready(), if held.is_some() => self.writer.pump(),
                () = sleep_until(patience), if patience.is_some() => self.release()?,
                () = room_of(self.outbox), if !room => {}
                message = input.next(), if reads => match message {
                    Some(Ok(message)) => {
                        if let Err(end) = self.on_message(message).await {
                            self.ended = Some(Err(end));
                        }
                        // Blocks are large: others get their turn after each.
                        tokio::task::coop::consume_budget().await;
                    }
                    Some(Err(error)) => self.ended = Some(Err(error.into())),
                    None => self.ended = Some(Ok(())),
                },
            }
        }
    }

    async fn on_message(&mut self, message: LogBatchRequest) -> Result<(), End> {
        match message.kind {
            Some(Kind::Block(block)) => self.on_block(block).await,
            Some(Kind::Gap(gap)) => self.on_gap(gap).await,
            Some(Kind::Finish(finish)) => self.on_finish(finish).await,
            Some(Kind::Open(_)) => Err(End::Invalid { field: "open", description: "came twice".to_owned() }),
            None => Err(End::Invalid {
                field: "kind",
                description: "is empty or of a newer version; accepted are open, block, gap, finish".to_owned(),
            }),
        }
    }

    async fn on_block(&mut self, block: LogBlock) -> Result<(), End> {
        let (first, end) = (block.first_sequence, block.end_sequence());
        if first == 0 || block.line_count == 0 || end > i64::MAX as u64 {
            return Err(invalid_block(block.check().err().map(|error| error.to_string()).unwrap_or_default()));
        }
        let placed = place(self.expected, first, end);
        match placed {
            Place::Next | Place::Overlap => {}
            Place::Duplicate => {
                self.duplicate(end - first);
                return Ok(());
            }
            Place::Hole => return self.hole(first, end),
        }
        if self.is_refusing(end)? || !self.pay_owed(end).await? {
            return Ok(());
        }
        if let Some(why) = too_large(&block) {
            return self.refuse_for_good(end, why);
        }
        let block = if placed == Place::Overlap {
            self.context.metrics.duplicate_lines.inc_by(self.expected - first);
            self.duplicates += self.expected - first;
            tail(&block, self.expected).map_err(|error| invalid_block(error.to_string()))?
        } else {
            block
        };
        let bytes = block.payload.len() + 256;
        self.submit(Submission { first: self.expected, end, record: Record::Block(block), what: What::Lines, bytes })
    }

    /// Lines up to before `end` that no store will ever take: a gap takes their place, and the client goes on after it.
    fn refuse_for_good(&mut self, end: u64, why: String) -> Result<(), End> {
        let first = self.expected;
        tracing::warn!(first, last = end - 1, why, "lines were refused for good");
        let (reason, last_sequence) = (Reason::Refused.into(), end - 1);
        let gap = LogGap { first_sequence: first, last_sequence, reason, message: why.clone() };
        let (bytes, what) = (256 + why.len(), What::Refused(why.into()));
        self.submit(Submission { first, end, record: Record::Gap(gap), what, bytes })
    }

    async fn on_gap(&mut self, mut gap: LogGap) -> Result<(), End> {
        let invalid = |field, value: u64, accepted: &str| {
            Err(End::Invalid { field, description: format!("is {value}; accepted is {accepted}") })
        };
        let (first, last) = (gap.first_sequence, gap.last_sequence);
        if first == 0 || first > i64::MAX as u64 {
            return invalid("gap.first_sequence", first, "1 to 2^63 - 1");
        }
        if (last != 0 && last < first) || last >= i64::MAX as u64 {
            return invalid("gap.last_sequence", last, "0 (the end is unknown), or first_sequence to 2^63 - 2");
        }
        let end = if last == 0 { first } else { last + 1 };
        let placed = if last == 0 { place(self.expected, first, first + 1) } else { place(self.expected, first, end) };
        match placed {
            Place::Next => {}
            Place::Overlap => gap.first_sequence = self.expected,
            Place::Duplicate => {
                self.duplicate(0);
                return Ok(());
            }
            Place::Hole => return self.hole(first, end),
        }
        if self.is_refusing(end)? {
            return Ok(());
        }
        if last == 0 {
            return self.on_open_gap(gap).await;
        }
        if !self.pay_owed(end).await? {
            return Ok(());
        }
        let first = self.expected;
        let bytes = 256 + gap.message.len();
        self.submit(Submission { first, end, record: Record::Gap(gap), what: What::Gap, bytes })
    }

    async fn on_finish(&mut self, finish: FinishRun) -> Result<(), End> {
        if self.finishing {
            if self.writer.is_idle() && self.finished {
                self.tell_finished().await?;
            }
            return Ok(());
        }
        let end = finish.last_sequence.saturating_add(1);
        if end < self.expected {
            return Err(End::Invalid {
                field: "finish.last_sequence",
                description: format!("is {}, but lines up to {} are stored", finish.last_sequence, self.expected - 1),
            });
        }
        if end > self.expected {
            return self.hole(end, end);
        }
        if self.is_refusing(end)? || !self.pay_owed(end).await? {
            return Ok(());
        }
        // It says that the run is whole: all before it is on disk before it is tried.
        if !self.is_stored(end).await? {
            return Ok(());
        }
        self.finishing = true;
        let bytes = 256 + finish.error_message.len();
        self.submit(Submission { first: end, end, record: Record::Finish(finish), what: What::Finish, bytes })
    }

    fn submit(&mut self, submission: Submission) -> Result<(), End> {
        if self.finishing && submission.what != What::Finish {
            return Err(End::finished());
        }
        self.holes.fits();
        self.expected = submission.end;
        if self.writer.push(submission) { Ok(()) } else { self.release() }
    }

    /// Lines that were stored before.
    fn duplicate(&mut self, lines: u64) {
        self.duplicates += lines;
        self.context.metrics.duplicate_lines.inc_by(lines);
        // What is not on disk yet is acknowledged when it is.
        if self.writer.is_idle() {
            self.acknowledge();
        }
    }

    fn hole(&mut self, first: u64, end: u64) -> Result<(), End> {
        if self.outbox.is_none() {
            return Err(End::from_store(
                StoreError::Sequence { expected: self.expected },
                self.context.limits.disk_full_delay,
            ));
        }
        if self.holes.misfit(first, end) {
            self.context.metrics.retry(Retry::Hole);
            self.tell(Answer::Retry { sequence: self.expected, delay_ms: 0, message: "lines before it are missing" });
        }
        Ok(())
    }

    /// Whether it is too early to try again; then the client is told so.
    fn is_refusing(&mut self, end: u64) -> Result<bool, End> {
        let Some((until, error)) = &self.refusing else { return Ok(false) };
        if Instant::now() >= *until {
            self.refusing = None;
            return Ok(false);
        }
        let error = error.clone();
        self.refuse(self.expected, end, error)?;
        Ok(true)
    }

    /// The store did not take the lines from `first` to before `end`.
    fn refuse(&mut self, first: u64, end: u64, error: StoreError) -> Result<(), End> {
        let (reason, delay, message) = match error {
            StoreError::DiskFull => {
                (Retry::DiskFull, self.context.limits.disk_full_delay, "the log server's disk is full")
            }
            _ => (Retry::Busy, self.context.limits.busy_delay, "too much is waiting to be written"),
        };
        if self.outbox.is_none() {
            return Err(End::from_store(error, delay));
        }
        self.context.metrics.retry(reason);
        self.refusals += 1;
        self.expected = first;
        self.finishing = self.finished;
        self.refusing = Some((Instant::now() + delay, error));
        self.holes.told(end);
        let delay_ms = u32::try_from(delay.as_millis()).unwrap_or(u32::MAX);
        self.tell(Answer::Retry { sequence: first, delay_ms, message });
        Ok(())
    }

    async fn on_settled(&mut self, settled: Settled) -> Result<(), End> {
        match &settled.result {
            Ok(()) => match &settled.what {
                What::Finish => {
                    self.finished = true;
                    self.context.registry.forget(&self.run.key.task_id, &self.run.key.worker_id, self.run.id);
                    self.tell_finished().await?;
                }
                What::Lines | What::Gap => self.acknowledge(),
                What::Refused(message) => {
                    let (next, last) = (settled.first, settled.end - 1);
                    self.context.metrics.dropped(Dropped::Refused, last + 1 - next);
                    self.tell(Answer::DropEach { next, last, message: message.clone() });
                }
            },
            Err(error @ (StoreError::DiskFull | StoreError::Busy)) => {
                let error = error.clone();
                let (first, end) = self.writer.rewind(&settled).await;
                self.refuse(first, end, error)?;
            }
            // Somebody else writes this run: that session goes on.
            Err(StoreError::Sequence { .. }) => return Err(End::TakenOver),
            Err(error) => return Err(End::from_store(error.clone(), self.context.limits.disk_full_delay)),
        }
        Ok(())
    }

    async fn tell_finished(&mut self) -> Result<(), End> {
        let missing_lines = self.missing_lines().await?;
        let last_sequence = self.writer.durable() - 1;
        self.tell(Answer::Finished(RunFinished { last_sequence, missing_lines }));
        self.ended.get_or_insert(Ok(()));
        Ok(())
    }

    async fn missing_lines(&self) -> Result<u64, End> {
        let run =
            self.context.store.run(self.run.id).await.map_err(|error| End::Unavailable {
                retry_after: Duration::from_secs(1),
                message: error.to_string(),
            })?;
        Ok(run.map_or(0, |run| run.missing_lines))
    }

    fn acknowledge(&self) {
        self.tell(Answer::Ack { sequence: self.writer.durable() - 1 });
    }

    fn tell(&self, answer: Answer) {
        if let Some(outbox) = self.outbox {
            outbox.push(answer);
        }
    }
}

async fn room_of(outbox: Option<&Outbox>) {
    if let Some(outbox) = outbox {
        outbox.room().await;
    }
}

/// Why no store will ever take this block, if that is so. One that is damaged, or of another format, is not judged.
fn too_large(block: &LogBlock) -> Option<String> {
    let (stored, bytes, lines) = (block.payload.len(), block.payload_bytes, block.line_count);
    let large = stored > MAX_BODY || bytes > MAX_PAYLOAD_BYTES || lines > MAX_LINES;
    let whole = || LogBlock { payload_bytes: 0, line_count: 1, ..block.clone() }.check().is_ok();
    (large && whole()).then(|| {
        format!(
            "the block is too large: {stored} bytes, {bytes} before compression, {lines} lines; accepted are at most \
             {MAX_BODY}, {MAX_PAYLOAD_BYTES} and {MAX_LINES}"
        )
    })
}

fn invalid_block(description: String) -> End {
    End::Invalid { field: "block", description }
}

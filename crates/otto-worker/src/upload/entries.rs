//! A session of the method that carries one line per message, as servers of the earlier system have it.
//!
//! They answer each entry, in order, perhaps without a sequence, and forget the worker with its stream. RETRY is about
//! that entry alone: those sent behind it may have been taken. So after a RETRY one entry is sent at a time, until the
//! server takes them readily again; order is only disturbed among those that were on their way.
//!
//! What was on its way when a stream broke is sent again, and may be there twice: these servers cannot tell.
//!
//! They know no gaps: an entry of ours tells of each.

use std::collections::VecDeque;
use std::time::Duration;

use otto_proto::block::DecodedBlock;
use otto_proto::v1::{LogEntry, LogGap, LogResponse, LoggingConfig, log_gap, log_response};
use otto_service::client::Backoff;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Streaming};

use super::pace::Pace;
use super::text::Form;
use super::{Break, Delivered, Uploader};
use crate::capture::{Demand, now_unix_nanos};
use crate::spool::{Reader, Record};

/// Entries on their way, where the server sets no limit.
const MOST_ENTRIES: usize = 256;
/// How often an entry is sent before it counts as refused. With the pauses between, over two seconds.
const MOST_TRIES: u32 = 6;
/// An empty message is refused by servers of the earlier system every time: once that was seen, it is tried only once
/// more, or a log with many empty lines would take for ever.
const MOST_TRIES_EMPTY: u32 = 1;
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(800));

/// An entry, and the line it is of.
struct Outgoing {
    entry: LogEntry,
    line: u64,
    tries: u32,
}

impl Uploader {
    pub(super) async fn send_entries(&mut self, config: &LoggingConfig) -> Result<Delivered, Break> {
        let acked = self.spool.next_to_send() - 1;
        let mut session = Session {
            form: Form {
                worker_id: self.run.worker_id.clone(),
                task_id: self.run.task_id.clone(),
                most_bytes: usize::try_from(config.max_message_size).ok().filter(|bytes| *bytes > 0),
                with_metadata: config.include_metadata,
            },
            reader: Reader::at(self.spool.clone(), acked + 1)?,
            block: None,
            pace: Pace::new(config.rate_limit, std::time::Instant::now()),
            waiting: VecDeque::new(),
            sent: VecDeque::new(),
            lines: Lines::new(acked),
            most: usize::try_from(config.buffer_size).ok().filter(|most| *most > 0).unwrap_or(MOST_ENTRIES),
            allowed: 8,
            taken: 0,
            backoff: Backoff::new(PAUSES.0, PAUSES.1),
            pause: None,
            empty_refused: false,
            drained: false,
            ended: false,
        };
        session.most = session.most.min(MOST_ENTRIES);
        // The stream is opened with its first entry: these servers answer nothing, not even headers, before.
        loop {
            self.fill(&mut session)?;
            if !session.waiting.is_empty() {
                break;
            }
            if session.ended {
                return Ok(Delivered { missing: self.missing_entries });
            }
            self.feedback.set_demand(Demand::Idle);
            self.spool.changed().await;
            session.drained = false;
        }
        let (outbound, receiver) = mpsc::channel(MOST_ENTRIES);
        if let Some(first) = session.next() {
            outbound.try_send(first).map_err(|_| Break::Ended)?;
        }
        let call = self.client.stream_logs(Request::new(ReceiverStream::new(receiver)));
        let mut inbound =
            tokio::time::timeout(self.server.deadline(), call).await.map_err(|_| Break::Silence)??.into_inner();
        self.reporter.connected();
        self.exchange_entries(&mut session, &outbound, &mut inbound).await?;
        // A session ends with its stream; the server may end its side when it likes.
        drop(outbound);
        let _ = tokio::time::timeout(self.server.deadline(), inbound.message()).await;
        Ok(Delivered { missing: self.missing_entries })
    }

    async fn exchange_entries(
        &mut self,
        session: &mut Session,
        outbound: &mpsc::Sender<LogEntry>,
        inbound: &mut Streaming<LogResponse>,
    ) -> Result<(), Break> {
        let mut heard = Instant::now();
        loop {
            self.fill(session)?;
            if session.is_done() {
                return Ok(());
            }
            self.feedback.set_demand(session.demand());
            let wait = session.wait();
            let may_send = wait.is_none() && session.may_send();
            let spool = self.spool.clone();
            tokio::select! {
                biased;
                answer = inbound.message() => {
                    heard = Instant::now();
                    self.hear_entry(session, &answer?.ok_or(Break::Ended)?)?;
                }
                permit = outbound.reserve(), if may_send => {
                    let Ok(permit) = permit else {
                        return Err(match tokio::time::timeout(self.server.deadline(), inbound.message()).await {
                            Ok(Err(status)) => status.into(),
                            _ => Break::Ended,
                        });
                    };
                    if session.sent.is_empty() {
                        heard = Instant::now();
                    }
                    if let Some(entry) = session.next() {
                        permit.send(entry);
                    }
                }
                () = spool.changed(), if session.drained && !session.ended => session.drained = false,
                () = sleep_until(wait.unwrap_or(heard)), if wait.is_some() => session.pause = None,
                () = sleep_until(heard + self.server.silence), if !session.sent.is_empty() => return Err(Break::Silence),
            }
        }
    }

    /// Reads the next lines, if few are waiting. Never all lines of a block at once: as entries they take many times
    /// their size.
    fn fill(&mut self, session: &mut Session) -> Result<(), Break> {
        while session.waiting.len() < session.most && !session.drained && !session.ended {
            if let Some(block) = session.block.take() {
                if session.take_lines(&block) {
                    session.block = Some(block);
                }
                continue;
            }
            match session.reader.next()? {
                None => session.drained = true,
                Some(Record::Block(block)) => {
                    let decoded = DecodedBlock::decode(&block)
                        .map_err(|error| std::io::Error::new(std::io::ErrorKind::InvalidData, error.to_string()))?;
                    session.expect(block.first_sequence, log_gap::Reason::Damaged, "the worker's spool was damaged");
                    session.block = Some(decoded);
                }
                Some(Record::Gap(gap)) => {
                    session.expect(gap.first_sequence, log_gap::Reason::Damaged, "the worker's spool was damaged");
                    session.gap(gap);
                }
                Some(Record::Finish(finish)) => {
                    // As of batches: no record tells of them, for there was no room.
                    let (end, why) =
                        (finish.last_sequence.saturating_add(1), "the worker's spool or its disk was full");
                    session.expect(end, log_gap::Reason::SpoolFull, why);
                    session.ended = true;
                }
            }
        }
        self.settle(session);
        Ok(())
    }

    fn hear_entry(&mut self, session: &mut Session, answer: &LogResponse) -> Result<(), Break> {
        let Some(sent) = session.sent.pop_front() else {
            return Err(Break::Protocol("it answers an entry that was not sent"));
        };
        self.by_entries = true;
        match answer.status() {
            log_response::Status::Ack => {
                session.took();
                session.lines.done(sent.line);
            }
            log_response::Status::Drop => {
                self.lost_lines();
                self.reporter.tell_refused(1, &answer.message);
                session.lines.refused(sent.line);
            }
            log_response::Status::Retry => {
                let empty = sent.entry.message.is_empty();
                let most = if empty && session.empty_refused { MOST_TRIES_EMPTY } else { MOST_TRIES };
                if sent.tries + 1 >= most {
                    // The rest goes on; this one is a gap.
                    self.lost_lines();
                    if !empty || !std::mem::replace(&mut session.empty_refused, true) {
                        let why = format!("asked {most} times to send again; {}", answer.message);
                        self.reporter.tell_refused(1, &why);
                    }
                    session.lines.refused(sent.line);
                } else {
                    session.send_again(sent, answer.retry_delay_ms);
                }
            }
        }
        self.settle(session);
        Ok(())
    }

    fn settle(&mut self, session: &mut Session) {
        let acked = session.lines.acked();
        // Each time costs a write: not for each line of many.
        if acked > self.reporter.acked() + 64 || session.sent.is_empty() {
            self.acknowledged(acked);
            // Those of lines that another session sends again are counted there.
            self.missing_entries += std::mem::take(&mut session.lines.missing);
        }
    }
}

/// Which lines are done, though entries may be answered out of their order when some are sent again.
#[derive(Debug)]
struct Lines {
    acked: u64,
    /// From the oldest.
    open: VecDeque<Open>,
    last: u64,
    /// Of those done since it was taken.
    missing: u64,
}

/// A line, or a gap.
#[derive(Debug)]
struct Open {
    first: u64,
    last: u64,
    /// Entries not answered yet.
    left: usize,
    missing: bool,
}

impl Lines {
    fn new(acked: u64) -> Self {
        Lines { acked, open: VecDeque::new(), last: acked, missing: 0 }
    }

    /// The next line.
    fn add(&mut self, entries: usize) {
        self.last += 1;
        self.open.push_back(Open { first: self.last, last: self.last, left: entries, missing: false });
    }

    /// The next lines up to `last` are missing; one entry tells so. Known by the first of them.
    fn add_gap(&mut self, last: u64) {
        self.open.push_back(Open { first: self.last + 1, last, left: 1, missing: true });
        self.last = last;
    }

    fn last(&self) -> u64 {
        self.last
    }

    /// One entry of the line is answered for good.
    fn done(&mut self, line: u64) {
        self.answered(line, false);
    }

    /// As [`Lines::done`], and the line is not whole without it.
    fn refused(&mut self, line: u64) {
        self.answered(line, true);
    }

    fn answered(&mut self, line: u64, missing: bool) {
        if let Ok(at) = self.open.binary_search_by_key(&line, |open| open.first) {
            let open = &mut self.open[at];
            open.left = open.left.saturating_sub(1);
            open.missing |= missing;
        }
        while let Some(open) = self.open.front()
            && open.left == 0
        {
            if open.missing {
                self.missing += open.last - open.first + 1;
            }
            self.open.pop_front();
        }
        self.acked = self.open.front().map_or(self.last, |open| open.first - 1);
    }

    fn acked(&self) -> u64 {
        self.acked
    }
}

struct Session {
    form: Form,
    reader: Reader,
    /// Of which not all lines are waiting yet.
    block: Option<DecodedBlock>,
    pace: Pace,
    /// To be sent; those to be sent again at the front.
    waiting: VecDeque<Outgoing>,
    /// Sent and not answered, oldest first.
    sent: VecDeque<Outgoing>,
    lines: Lines,
    most: usize,
    /// How many may be on their way now.
    allowed: usize,
    /// Taken since `allowed` was changed.
    taken: usize,
    backoff: Backoff,
    pause: Option<Instant>,
    empty_refused: bool,
    drained: bool,
    ended: bool,
}

impl Session {
    /// Takes the next lines of a block; whether there were any.
    fn take_lines(&mut self, block: &DecodedBlock) -> bool {
        let done = self.lines.last();
        let mut taken = false;
        for line in block.lines().skip_while(|line| line.sequence <= done).take(self.most) {
            let entries = self.form.entries(&line);
            self.lines.add(entries.len());
            let line = line.sequence;
            self.waiting.extend(entries.into_iter().map(|entry| Outgoing { entry, line, tries: 0 }));
            taken = true;
        }
        taken
    }

    /// The next record begins there: what is before and was not read is missing.
    fn expect(&mut self, sequence: u64, reason: log_gap::Reason, message: &str) {
        let gap = LogGap {
            first_sequence: self.lines.last() + 1,
            last_sequence: sequence.saturating_sub(1),
            reason: reason.into(),
            message: message.to_owned(),
        };
        if gap.first_sequence <= gap.last_sequence {
            self.gap(gap);
        }
    }

    /// Tells of a gap, as far as it was not told of.
    fn gap(&mut self, mut gap: LogGap) {
        // Of an unknown end: it is no line's entry.
        let mut line = 0;
        if gap.last_sequence > 0 {
            gap.first_sequence = gap.first_sequence.max(self.lines.last() + 1);
            if gap.last_sequence < gap.first_sequence {
                return;
            }
            line = gap.first_sequence;
            self.lines.add_gap(gap.last_sequence);
        }
        let entry = self.form.gap(&gap, now_unix_nanos());
        self.waiting.push_back(Outgoing { entry, line, tries: 0 });
    }

    fn is_done(&self) -> bool {
        self.ended && self.waiting.is_empty() && self.sent.is_empty()
    }

    fn demand(&self) -> Demand {
        if !self.waiting.is_empty() {
            Demand::Behind
        } else if self.sent.is_empty() {
            Demand::Idle
        } else {
            Demand::Busy
        }
    }

    fn may_send(&self) -> bool {
        !self.waiting.is_empty() && self.sent.len() < self.allowed.min(self.most)
    }

    fn wait(&mut self) -> Option<Instant> {
        let paced = self.pace.wait_until(std::time::Instant::now()).map(Instant::from_std);
        self.pause.into_iter().chain(paced).max()
    }

    fn next(&mut self) -> Option<LogEntry> {
        let next = self.waiting.pop_front()?;
        let entry = next.entry.clone();
        self.pace.sent(1);
        self.sent.push_back(next);
        Some(entry)
    }

    fn took(&mut self) {
        self.backoff.reset();
        self.taken += 1;
        if self.taken >= self.allowed {
            self.taken = 0;
            self.allowed = (self.allowed * 2).min(self.most);
        }
    }

    fn send_again(&mut self, mut sent: Outgoing, delay_ms: i32) {
        sent.tries += 1;
        // Before those not sent yet, behind those that were sent before it and are to be sent again too.
        let behind = self.waiting.iter().take_while(|waiting| waiting.tries > 0).count();
        self.waiting.insert(behind, sent);
        (self.allowed, self.taken) = (1, 0);
        let asked = Duration::from_millis(u64::try_from(delay_ms).unwrap_or(0)).min(Duration::from_secs(30));
        self.pause = self.pause.max(Some(Instant::now() + asked.max(self.backoff.next())));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_done_with_its_last_entry_and_all_lines_before() {
        let mut lines = Lines::new(4);
        lines.add(1);
        lines.add(3);
        lines.add_gap(9);
        lines.add(1);
        assert_eq!((lines.acked(), lines.last()), (4, 10));
        for (line, acked) in [(6, 4), (10, 4), (5, 5), (6, 5), (0, 5), (6, 6), (7, 10)] {
            lines.done(line);
            assert_eq!((lines.acked(), lines.missing), (acked, if acked == 10 { 3 } else { 0 }));
        }
        lines.add(2);
        lines.refused(11);
        assert_eq!((lines.acked(), lines.missing), (10, 3));
        lines.refused(11);
        assert_eq!((lines.acked(), lines.missing), (11, 4));
    }
}

//! A session of the batch method: blocks as they lie in the spool, a window of them on the way, cumulative
//! acknowledgements.

use std::time::Duration;

use otto_proto::v1::log_batch_request::Kind as Ask;
use otto_proto::v1::log_batch_response::Kind as Answer;
use otto_proto::v1::{
    FinishRun, LogBatchRequest, LogBatchResponse, LogBlock, LogGap, LoggingConfig, OpenRun, RunOpened, log_gap,
};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Streaming};

use super::pace::Pace;
use super::reblock::{Most, piece};
use super::window::{Rewind, Window};
use super::{Break, Delivered, Uploader};
use crate::capture::Demand;
use crate::spool::{Reader, Record};

/// Messages between us and the transport: enough to keep it busy, few enough that a retry is not sent behind much.
const QUEUE: usize = 4;
/// Longest pause a server may ask for.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

impl Uploader {
    pub(super) async fn send_batches(&mut self, config: &LoggingConfig) -> Result<Delivered, Break> {
        let (outbound, receiver) = mpsc::channel(QUEUE);
        let held = self.spool.hold();
        let open = OpenRun {
            worker_id: self.run.worker_id.clone(),
            task_id: self.run.task_id.clone(),
            run_id: self.run.run_id.clone(),
            first_available: held.first,
        };
        // Sent before the call, whose answer may wait for it.
        outbound.try_send(message(Ask::Open(open))).map_err(|_| Break::Ended)?;
        let call = self.client.stream_log_batches(Request::new(ReceiverStream::new(receiver)));
        let mut inbound =
            tokio::time::timeout(self.server.deadline(), call).await.map_err(|_| Break::Silence)??.into_inner();
        let first =
            tokio::time::timeout(self.server.deadline(), inbound.message()).await.map_err(|_| Break::Silence)??;
        let opened = match first.ok_or(Break::Ended)?.kind {
            Some(Answer::Opened(opened)) => opened,
            Some(Answer::Retry(retry)) => {
                pause(retry.delay_ms).await;
                return Err(Break::Refused(retry.message));
            }
            Some(Answer::Drop(refused)) => return Err(Break::Refused(refused.message)),
            _ => return Err(Break::Protocol("its first answer on a batch stream is not `opened`")),
        };
        self.reporter.connected();
        let Some(session) = self.begin(&opened, config, held.first)? else {
            return Ok(Delivered { missing: 0 });
        };
        drop(held);
        self.exchange(session, outbound, &mut inbound).await
    }

    /// Agrees with the server on where to go on; `None`: the run had been finished before.
    fn begin(
        &mut self,
        opened: &RunOpened,
        config: &LoggingConfig,
        first_available: u64,
    ) -> Result<Option<Session>, Break> {
        let pending = self.spool.pending();
        if opened.finished {
            self.acknowledged(pending.last_sequence);
            return Ok(None);
        }
        let stored = opened.expected_sequence.max(1) - 1;
        if stored > pending.last_sequence && !self.spool.is_complete() {
            return Err(Break::Protocol("it says it has lines of this run that were not printed yet"));
        }
        // A server that lost what it had acknowledged gets it again, as far as it is still here; it notes itself what is
        // missing before that, and may have done so already.
        let lost = stored + 1 < self.spool.next_to_send();
        if lost && stored < first_available && first_available > 1 {
            self.lost_lines();
        }
        // A spool that lost its end in a crash of the machine may know less than the server.
        let acked = stored.max(first_available - 1);
        self.spool.back_to(acked);
        self.acknowledged(acked);
        let config = opened.config.as_ref().unwrap_or(config);
        self.feedback.limit_lines(config.max_message_size);
        Ok(Some(Session {
            window: Window::new(acked, self.server.window_bytes, config.buffer_size.max(0).cast_unsigned().into()),
            pace: Pace::new(config.rate_limit, std::time::Instant::now()),
            reader: Reader::at(self.spool.clone(), acked + 1)?,
            held: None,
            drained: false,
            ending: None,
            ending_sent: false,
            pause: None,
        }))
    }

    async fn exchange(
        &mut self,
        mut session: Session,
        outbound: mpsc::Sender<LogBatchRequest>,
        inbound: &mut Streaming<LogBatchResponse>,
    ) -> Result<Delivered, Break> {
        let mut heard = Instant::now();
        loop {
            self.feedback.set_demand(session.demand());
            let wait = session.wait();
            let one_by_one = !session.window.is_idle() && self.size.one_by_one();
            let may_send = wait.is_none() && session.has_something_to_send() && !one_by_one;
            let waits_for_answer = !session.window.is_idle() || session.ending_sent;
            let spool = self.spool.clone();
            tokio::select! {
                biased;
                answer = inbound.message() => {
                    heard = Instant::now();
                    let answer = answer?.ok_or(Break::Ended)?.kind;
                    if let Some(delivered) = self.hear(&mut session, answer)? {
                        return Ok(delivered);
                    }
                }
                permit = outbound.reserve(), if may_send => {
                    // The transport has ended the stream: why, says its answer.
                    let Ok(permit) = permit else {
                        return Err(match tokio::time::timeout(self.server.deadline(), inbound.message()).await {
                            Ok(Err(status)) => status.into(),
                            _ => Break::Ended,
                        });
                    };
                    if session.window.is_idle() {
                        heard = Instant::now();
                    }
                    if let Some(next) = self.next(&mut session)? {
                        permit.send(message(next));
                    }
                }
                () = spool.changed(), if session.drained => session.drained = false,
                () = sleep_until(wait.unwrap_or(heard)), if wait.is_some() => session.pause = None,
                () = sleep_until(heard + self.server.silence), if waits_for_answer => return Err(Break::Silence),
            }
        }
    }

    /// `Some`: that was all.
    fn hear(&mut self, session: &mut Session, answer: Option<Answer>) -> Result<Option<Delivered>, Break> {
        match answer {
            Some(Answer::Ack(ack)) => {
                session.window.acknowledged(ack.sequence)?;
                self.acknowledged(session.window.acked());
            }
            Some(Answer::Retry(retry)) => {
                let delay = Duration::from_millis(retry.delay_ms.into()).min(LONGEST_PAUSE);
                tracing::debug!(from = retry.sequence, ?delay, "to be sent again: {}", retry.message);
                match session.window.retry(retry.sequence)? {
                    Rewind::Gone => return Err(Break::Lost),
                    Rewind::To(sequence) => {
                        session.rewind(Reader::at(self.spool.clone(), sequence)?, Instant::now() + delay);
                    }
                }
            }
            Some(Answer::Drop(refused)) => {
                session.window.dropped(refused.first_sequence, refused.last_sequence)?;
                let lines = (refused.last_sequence + 1).saturating_sub(refused.first_sequence);
                self.reporter.refused(lines, &refused.message);
                self.lost_lines();
                self.acknowledged(session.window.acked());
            }
            Some(Answer::Finished(finished)) => {
                if !session.ending_sent {
                    return Err(Break::Protocol("it says the run is finished, but was not told so"));
                }
                self.acknowledged(session.window.next() - 1);
                return Ok(Some(Delivered { missing: finished.missing_lines }));
            }
            Some(Answer::Opened(_)) => return Err(Break::Protocol("it opens a stream twice")),
            // Of a newer server.
            None => {}
        }
        Ok(None)
    }

    /// The next message, if there is one.
    fn next(&mut self, session: &mut Session) -> Result<Option<Ask>, Break> {
        if let Some(block) = session.held.take() {
            return self.next_of(session, block).map(Some);
        }
        if let Some(finish) = &session.ending {
            let mut finish = finish.clone();
            let from = session.window.next();
            if finish.last_sequence >= from {
                return Ok(Some(Ask::Gap(self.end_gap(session, &finish, from))));
            }
            // A spool that lost its end knows less than the server.
            if self.incomplete || finish.last_sequence < session.window.acked() {
                finish.digest.clear();
            }
            finish.last_sequence = session.window.acked();
            session.ending_sent = true;
            return Ok(Some(Ask::Finish(finish)));
        }
        let Some(record) = session.reader.next()? else {
            session.drained = true;
            return Ok(None);
        };
        let from = session.window.next();
        match record {
            Record::Block(block) if block.end_sequence() <= from => Ok(None),
            Record::Block(block) => self.next_of(session, block).map(Some),
            Record::Gap(gap) => Ok(session.gap(gap).map(Ask::Gap)),
            Record::Finish(finish) => {
                session.ending = Some(finish);
                Ok(None)
            }
        }
    }

    /// Of lines the run ends with that no record tells of, not even a gap.
    fn end_gap(&mut self, session: &mut Session, finish: &FinishRun, from: u64) -> LogGap {
        // Only when there was no room for the gap is there no digest either.
        let (reason, message) = if finish.digest.is_empty() {
            (log_gap::Reason::SpoolFull, "the worker's spool or its disk was full")
        } else {
            (log_gap::Reason::Damaged, "the worker's spool was damaged")
        };
        self.lost_lines();
        session.window.sent(finish.last_sequence + 1, 0);
        LogGap {
            first_sequence: from,
            last_sequence: finish.last_sequence,
            reason: reason.into(),
            message: message.to_owned(),
        }
    }

    /// As much of a block as may be sent in one message; the rest is held.
    fn next_of(&mut self, session: &mut Session, block: LogBlock) -> Result<Ask, Break> {
        let from = session.window.next();
        if block.first_sequence > from {
            let gap = LogGap {
                first_sequence: from,
                last_sequence: block.first_sequence - 1,
                reason: log_gap::Reason::Damaged.into(),
                message: "the worker's spool was damaged".to_owned(),
            };
            session.window.sent(block.first_sequence, 0);
            session.held = Some(block);
            self.lost_lines();
            return Ok(Ask::Gap(gap));
        }
        if self.size.is_unsendable(from) {
            let why = "it is larger than the log server's transport carries";
            let gap = LogGap {
                first_sequence: from,
                last_sequence: from,
                reason: log_gap::Reason::Refused.into(),
                message: why.to_owned(),
            };
            session.window.sent(from + 1, 0);
            if from + 1 < block.end_sequence() {
                session.held = Some(block);
            }
            self.lost_lines();
            self.reporter.refused(1, why);
            return Ok(Ask::Gap(gap));
        }
        let lines = session.window.room_lines().min(session.pace.message_lines());
        let most = Most { lines: if self.size.one_by_one() { 1 } else { lines }, bytes: self.size.most_bytes() };
        let part = if block.first_sequence == from && most.allows(&block) {
            block
        } else {
            let part =
                piece(&block, from, most).map_err(|_| Break::Protocol("it asks for a line that no block has"))?;
            if part.end_sequence() < block.end_sequence() {
                session.held = Some(block);
            }
            part
        };
        session.pace.sent(part.line_count.into());
        let bytes = part.payload.len() as u64;
        session.window.sent(part.end_sequence(), bytes);
        self.size.sent(from, bytes);
        Ok(Ask::Block(part))
    }
}

/// The state of one stream.
struct Session {
    window: Window,
    pace: Pace,
    reader: Reader,
    /// A block of which a part is still to be sent.
    held: Option<LogBlock>,
    /// The reader has nothing more at the moment.
    drained: bool,
    /// The end, sent when everything before is acknowledged.
    ending: Option<FinishRun>,
    ending_sent: bool,
    pause: Option<Instant>,
}

impl Session {
    fn demand(&self) -> Demand {
        if self.pause.is_some() || !self.window.has_room() {
            Demand::Behind
        } else if self.window.is_idle() {
            Demand::Idle
        } else {
            Demand::Busy
        }
    }

    fn has_something_to_send(&self) -> bool {
        if self.ending.is_some() {
            // Only now is it known that nothing is refused any more.
            return !self.ending_sent && self.window.is_idle();
        }
        self.window.has_room() && !self.drained
    }

    /// Until when nothing may be sent.
    fn wait(&mut self) -> Option<Instant> {
        let paced = self.pace.wait_until(std::time::Instant::now()).map(Instant::from_std);
        self.pause.into_iter().chain(paced).max()
    }

    fn rewind(&mut self, reader: Reader, until: Instant) {
        self.reader = reader;
        self.held = None;
        self.drained = false;
        self.ending = None;
        self.ending_sent = false;
        // Blocks that were behind the one sent back are sent back as well, without a pause of their own: the longest
        // pause asked for is the one meant.
        self.pause = self.pause.max(Some(until));
    }

    /// What of a gap the server does not know yet.
    fn gap(&mut self, mut gap: LogGap) -> Option<LogGap> {
        gap.first_sequence = gap.first_sequence.max(self.window.next());
        if gap.last_sequence == 0 {
            return Some(gap);
        }
        if gap.last_sequence < gap.first_sequence {
            return None;
        }
        self.window.sent(gap.last_sequence + 1, 0);
        Some(gap)
    }
}

async fn pause(millis: u32) {
    tokio::time::sleep(Duration::from_millis(millis.into()).min(LONGEST_PAUSE)).await;
}

fn message(kind: Ask) -> LogBatchRequest {
    LogBatchRequest { kind: Some(kind) }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use otto_proto::block::{Attributes, Builder};
    use otto_proto::v1::{LogLevel, LogSource, WorkerMetadata};

    use super::*;
    use crate::settings::Upload;
    use crate::spool::{RunInfo, create};
    use crate::upload::Server;

    #[derive(clap::Parser)]
    struct Flags {
        #[command(flatten)]
        upload: Upload,
    }

    #[tokio::test]
    async fn lines_the_run_ends_with_that_are_nowhere_are_a_gap() {
        for (digest, reason) in [(0, log_gap::Reason::SpoolFull), (16, log_gap::Reason::Damaged)] {
            let temporary = tempfile::tempdir().unwrap();
            let run = RunInfo::new("t", "w", 1);
            let (mut writer, spool) = create(temporary.path(), &run, 1 << 20, 0).unwrap();
            let mut builder = Builder::new();
            let attributes = Attributes { time_unix_nanos: 1, level: LogLevel::Info, source: LogSource::Stdout };
            builder.push(b"x\n", attributes);
            writer.append(Record::Block(builder.finish(1, None).unwrap()), true).unwrap();
            let finish = FinishRun { last_sequence: 5, digest: vec![1; digest].into(), ..FinishRun::default() };
            writer.append(Record::Finish(finish), true).unwrap();
            writer.complete();
            let server = Server::new("http://127.0.0.1:1", &Flags::parse_from(["test"]).upload).unwrap();
            let feedback = std::sync::Arc::new(crate::capture::Feedback::new(1000));
            let (mut uploader, _watcher) =
                Uploader::new(server, run, WorkerMetadata::default(), spool.clone(), feedback);
            let mut session =
                uploader.begin(&RunOpened::default(), &LoggingConfig::default(), 1).unwrap().expect("a session");
            let mut sent = Vec::new();
            for _ in 0..6 {
                while session.has_something_to_send() {
                    sent.extend(uploader.next(&mut session).unwrap());
                }
                session.window.acknowledged(session.window.next() - 1).unwrap();
            }
            let [Ask::Block(_), Ask::Gap(gap), Ask::Finish(finish)] = &sent[..] else { panic!("{sent:?}") };
            assert_eq!((gap.first_sequence, gap.last_sequence, gap.reason()), (2, 5, reason));
            assert_eq!((finish.last_sequence, finish.digest.is_empty()), (5, true));
            assert!(spool.is_incomplete());
        }
    }
}

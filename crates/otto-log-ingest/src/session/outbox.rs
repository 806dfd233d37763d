//! What a session has to tell its client, until the response stream fetches it.
//!
//! Each time the stream is emptied becomes an HTTP/2 frame. A client that reads late collects them, and the h2 library
//! ends a connection on which very many small ones wait. So while more acknowledgements are to come anyway, they are held
//! back for some milliseconds; the last ones never are.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures::Stream;
use otto_proto::v1::{RunFinished, RunOpened};
use tokio::sync::Notify;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::End;

/// Answers that wait at most; those that merge count as one. A session stops reading at this.
const CAPACITY: usize = 1024;

/// Frames sent without delay while more is to come.
const FREE_FRAMES: u32 = 64;
/// Longest time that acknowledgements are held back.
const LONGEST_HOLD: Duration = Duration::from_millis(20);

/// Something to tell.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Answer {
    Opened(RunOpened),
    /// Everything up to `sequence` is on disk.
    Ack {
        sequence: u64,
    },
    /// The lines from `next` to `last` are on disk: one answer each.
    AckEach {
        next: u64,
        last: u64,
    },
    /// Send again from `sequence`.
    Retry {
        sequence: u64,
        delay_ms: u32,
        message: &'static str,
    },
    /// Send the lines from `next` to `last` again: one answer each.
    RetryEach {
        next: u64,
        last: u64,
        delay_ms: u32,
        message: &'static str,
    },
    /// The lines from `next` to `last` will never be stored: one answer each.
    DropEach {
        next: u64,
        last: u64,
        message: Arc<str>,
    },
    Finished(RunFinished),
}

/// A response message made of an answer.
pub(crate) trait Reply: Sized {
    /// Takes the next message out of `answer`; the flag tells that nothing is left in it.
    fn take(answer: &mut Answer) -> (Self, bool);
}

#[derive(Default)]
struct State {
    queue: VecDeque<Answer>,
    end: Option<Result<(), End>>,
    reader: Option<Waker>,
}

struct Shared {
    state: Mutex<State>,
    room: Notify,
    /// More acknowledgements will follow.
    busy: AtomicBool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The session's side. When it is dropped without [`Outbox::end`], the stream ends with an internal error: a client
/// never waits for a session that is no more.
pub(crate) struct Outbox(Arc<Shared>);

/// The response stream's side. Cancels `gone` when it is dropped.
pub(crate) struct Replies<T> {
    shared: Arc<Shared>,
    current: Option<Answer>,
    over: bool,
    /// Something was given since the stream was last empty.
    in_frame: bool,
    pace: Pace,
    _gone: DropGuard,
    _reply: std::marker::PhantomData<fn() -> T>,
}

/// Makes both sides; `gone` is cancelled when the response stream is no longer wanted.
pub(crate) fn pair<T: Reply>(gone: CancellationToken) -> (Outbox, Replies<T>) {
    let shared = Arc::new(Shared { state: Mutex::default(), room: Notify::new(), busy: AtomicBool::new(false) });
    let replies = Replies {
        shared: shared.clone(),
        current: None,
        over: false,
        in_frame: false,
        pace: Pace { frames: 0, began: Instant::now(), hold: None },
        _gone: gone.drop_guard(),
        _reply: std::marker::PhantomData,
    };
    (Outbox(shared), replies)
}

impl Outbox {
    pub(crate) fn push(&self, answer: Answer) {
        let mut state = self.0.lock();
        match (state.queue.back_mut(), &answer) {
            (Some(Answer::Ack { sequence }), Answer::Ack { sequence: newer }) => *sequence = *newer,
            (Some(Answer::AckEach { last, .. }), Answer::AckEach { next, last: newer }) if *last + 1 == *next => {
                *last = *newer;
            }
            _ => state.queue.push_back(answer),
        }
        let reader = state.reader.take();
        drop(state);
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    /// Tells whether more acknowledgements will follow.
    pub(crate) fn set_busy(&self, busy: bool) {
        if self.0.busy.swap(busy, Ordering::Relaxed) && !busy {
            self.wake();
        }
    }

    fn wake(&self) {
        let reader = self.0.lock().reader.take();
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    /// Whether the session may take more work.
    pub(crate) fn has_room(&self) -> bool {
        self.0.lock().queue.len() < CAPACITY
    }

    /// Waits until the reader has made room.
    pub(crate) async fn room(&self) {
        loop {
            let room = self.0.room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            if self.has_room() {
                return;
            }
            room.await;
        }
    }

    /// Nothing follows.
    pub(crate) fn end(&self, end: Result<(), End>) {
        let mut state = self.0.lock();
        state.end.get_or_insert(end);
        let reader = state.reader.take();
        drop(state);
        if let Some(reader) = reader {
            reader.wake();
        }
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        // INTERNAL of gRPC. Only a panic of the session gets here without an end; it was logged where it is joined.
        self.end(Err(End::Transport { code: 13, message: "the session failed".to_owned() }));
    }
}

/// When frames of nothing but acknowledgements begin.
struct Pace {
    /// Frames since the session was last idle.
    frames: u32,
    /// When the last one began.
    began: Instant,
    hold: Option<Pin<Box<Sleep>>>,
}

impl Pace {
    /// Whether the next one is not begun yet; then `context` is woken when it is time.
    fn holds(&mut self, busy: bool, context: &mut Context<'_>) -> bool {
        let now = Instant::now();
        if !busy {
            self.frames = 0;
        }
        let due = self.began + LONGEST_HOLD.min(Duration::from_millis(1) * (self.frames / FREE_FRAMES));
        if now < due {
            let hold = self.hold.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
            hold.as_mut().reset(due);
            if hold.as_mut().poll(context).is_pending() {
                return true;
            }
        }
        self.frames = self.frames.saturating_add(1);
        self.began = now;
        false
    }
}

impl<T: Reply> Stream for Replies<T> {
    type Item = Result<T, End>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if this.current.is_none() {
            if this.over {
                return Poll::Ready(None);
            }
            let mut state = this.shared.lock();
            let was_full = state.queue.len() >= CAPACITY;
            let acks = matches!(state.queue.front(), Some(Answer::Ack { .. } | Answer::AckEach { .. }));
            if !this.in_frame && acks && state.queue.len() == 1 && state.end.is_none() {
                // Asked before anything is decided: the session says that it is idle, then wakes this.
                state.reader = Some(context.waker().clone());
                if this.pace.holds(this.shared.busy.load(Ordering::Relaxed), context) {
                    return Poll::Pending;
                }
            }
            match state.queue.pop_front() {
                Some(answer) => this.current = Some(answer),
                None => match state.end.clone() {
                    Some(end) => {
                        drop(state);
                        this.over = true;
                        return Poll::Ready(end.err().map(Err));
                    }
                    None => {
                        state.reader = Some(context.waker().clone());
                        this.in_frame = false;
                        return Poll::Pending;
                    }
                },
            }
            drop(state);
            if was_full {
                this.shared.room.notify_waiters();
            }
        }
        let Some(answer) = this.current.as_mut() else { return Poll::Ready(None) };
        this.in_frame = true;
        let (reply, over) = T::take(answer);
        if over {
            this.current = None;
        }
        Poll::Ready(Some(Ok(reply)))
    }
}

/// Steps through a range: the sequence now, and whether it was the last.
pub(crate) fn step(next: &mut u64, last: u64) -> (u64, bool) {
    let now = *next;
    *next = now + 1;
    (now, now >= last)
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt, StreamExt};

    use super::*;

    #[derive(Debug, PartialEq)]
    struct Number(u64);

    impl Reply for Number {
        fn take(answer: &mut Answer) -> (Self, bool) {
            match answer {
                Answer::AckEach { next, last } => {
                    let (now, over) = step(next, *last);
                    (Self(now), over)
                }
                Answer::Ack { sequence } => (Self(*sequence), true),
                _ => (Self(0), true),
            }
        }
    }

    #[tokio::test]
    async fn ranges_merge_and_come_out_one_by_one() {
        let gone = CancellationToken::new();
        let (outbox, mut replies) = pair::<Number>(gone.clone());
        for n in 0..100_000u64 {
            outbox.push(Answer::AckEach { next: n * 2 + 1, last: n * 2 + 2 });
        }
        assert!(outbox.has_room());
        assert_eq!(outbox.0.lock().queue.len(), 1);
        for n in 1..=200_000 {
            assert_eq!(replies.next().await.unwrap().unwrap(), Number(n));
        }
        assert!(replies.next().now_or_never().is_none());
        outbox.push(Answer::Ack { sequence: 7 });
        outbox.push(Answer::Ack { sequence: 9 });
        outbox.end(Ok(()));
        assert_eq!(replies.next().await.unwrap().unwrap(), Number(9));
        assert!(replies.next().await.is_none());
        drop(replies);
        assert!(gone.is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn acknowledgements_are_held_back_only_while_more_follow() {
        let (outbox, mut replies) = pair::<Number>(CancellationToken::new());
        outbox.set_busy(true);
        let (mut frames, begun) = (0u64, Instant::now());
        for sequence in 1..=10_000 {
            outbox.push(Answer::Ack { sequence });
            frames += u64::from(replies.next().now_or_never().is_some());
            assert!(replies.next().now_or_never().is_none());
            tokio::time::advance(Duration::from_micros(200)).await;
        }
        assert_eq!(begun.elapsed(), Duration::from_secs(2));
        assert!((FREE_FRAMES.into()..1000).contains(&frames), "{frames}");
        // The last one comes at once when nothing follows, and so does each one that is waited for.
        outbox.push(Answer::Ack { sequence: 10_001 });
        outbox.set_busy(false);
        assert_eq!(replies.next().now_or_never().unwrap().unwrap().unwrap(), Number(10_001));
        for sequence in 10_002..=11_000 {
            assert!(replies.next().now_or_never().is_none());
            outbox.set_busy(true);
            outbox.push(Answer::Ack { sequence });
            outbox.set_busy(false);
            assert_eq!(replies.next().now_or_never().unwrap().unwrap().unwrap(), Number(sequence));
        }
        assert_eq!(begun.elapsed(), Duration::from_secs(2));
    }

    #[tokio::test]
    async fn a_lost_session_ends_the_stream() {
        let (outbox, mut replies) = pair::<Number>(CancellationToken::new());
        drop(outbox);
        assert!(matches!(replies.next().await, Some(Err(End::Transport { code: 13, .. }))));
        assert!(replies.next().await.is_none());
    }

    #[tokio::test]
    async fn a_full_outbox_waits_for_its_reader() {
        let (outbox, mut replies) = pair::<Number>(CancellationToken::new());
        for sequence in 0..CAPACITY as u64 {
            outbox.push(Answer::Retry { sequence, delay_ms: 0, message: "" });
        }
        assert!(!outbox.has_room());
        let mut room = Box::pin(outbox.room());
        assert!((&mut room).now_or_never().is_none());
        replies.next().await.unwrap().unwrap();
        room.await;
    }
}

//! What a proxy does to which requests.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::Method;
use tokio::sync::watch;

use crate::PATIENCE;

/// What happens to a request.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The connection ends; the server never hears of the request.
    CutBefore,
    /// The server answers, and the connection ends before the client gets any of it.
    CutAfter,
    /// The request waits here until [`Fired::release`]. If the client has gone by then, the server never hears of it.
    HoldBefore,
    /// The server has answered, and the answer waits here until [`Fired::release`].
    HoldAfter,
    /// The request waits here until [`Fired::release`], and then reaches the server even if the client has gone: a network
    /// that delivers late.
    Late,
    /// The request waits so long.
    Delay(Duration),
    /// Not forwarded: this status, and these seconds of `Retry-After`.
    Answer(u16, Option<u32>),
    /// The server does it, and the client is told this status: an answer that lies, as one of a load balancer does.
    AnswerAfter(u16),
    /// Of a watch: its first event is this error (410 is "Expired"), and it ends.
    WatchError(u16),
    /// Of a watch: each part of it comes so much later.
    SlowWatch(Duration),
    /// Of a watch: open, and silent for ever.
    SilentWatch,
}

/// Which requests, and what happens to them. The first rule that fits is applied.
#[derive(Clone, Debug)]
pub struct Rule {
    fault: Fault,
    method: Option<Method>,
    path: String,
    body: String,
    watch: Option<bool>,
    skip: u32,
    times: u32,
}

impl Rule {
    /// Of all requests.
    #[must_use]
    pub fn all(fault: Fault) -> Self {
        let (path, body) = (String::new(), String::new());
        Self { fault, method: None, path, body, watch: None, skip: 0, times: u32::MAX }
    }

    /// Of requests with this method whose path and query contain `path`; watches are left alone.
    #[must_use]
    pub fn of(method: Method, path: &str, fault: Fault) -> Self {
        Self { method: Some(method), path: path.to_owned(), watch: Some(false), ..Self::all(fault) }
    }

    /// Of Pods that are to be created; not of dry runs.
    #[must_use]
    pub fn create_pod(fault: Fault) -> Self {
        Self::of(Method::POST, "/pods?", fault)
    }

    /// Of Pods that are to be deleted.
    #[must_use]
    pub fn delete_pod(fault: Fault) -> Self {
        Self::of(Method::DELETE, "/pods/", fault)
    }

    /// Of watches.
    #[must_use]
    pub fn watch(fault: Fault) -> Self {
        Self { watch: Some(true), ..Self::all(fault) }
    }

    /// Of watches of Pods.
    #[must_use]
    pub fn watch_pods(fault: Fault) -> Self {
        Self { path: "/pods?".to_owned(), ..Self::watch(fault) }
    }

    /// Of whatever concerns Leases.
    #[must_use]
    pub fn leases(fault: Fault) -> Self {
        Self { path: "/leases".to_owned(), ..Self::all(fault) }
    }

    /// Only those whose body contains this text.
    #[must_use]
    pub fn containing(self, text: &str) -> Self {
        Self { body: text.to_owned(), ..self }
    }

    /// Not the first `count` of them.
    #[must_use]
    pub fn after(self, count: u32) -> Self {
        Self { skip: count, ..self }
    }

    /// Only so many of them; then it is as if the rule were not there.
    #[must_use]
    pub fn times(self, count: u32) -> Self {
        Self { times: count, ..self }
    }

    fn fits(&self, request: &Asked) -> bool {
        // A path without a query ends where the pattern's "?" is.
        let path = format!("{}?{}", request.path, request.query);
        self.method.as_ref().is_none_or(|method| *method == request.method)
            && path.contains(&self.path)
            && (self.body.is_empty() || request.body.contains(&self.body))
            && self.watch.is_none_or(|watch| watch == request.is_watch())
            && !(request.query.contains("dryRun=") && self.method == Some(Method::POST))
    }
}

/// A request as rules look at it.
#[derive(Clone, Debug)]
pub struct Asked {
    /// When it came.
    pub at: Instant,
    /// GET, POST, …
    pub method: Method,
    /// Without the query.
    pub path: String,
    /// What comes after `?`.
    pub query: String,
    /// Its text.
    pub body: String,
}

impl Asked {
    /// True for a watch (a streaming list is one too).
    #[must_use]
    pub fn is_watch(&self) -> bool {
        self.query.split('&').any(|part| ["watch=true", "watch=1"].contains(&part))
    }
}

struct Active {
    id: u64,
    rule: Rule,
    fitting: u32,
    hits: watch::Sender<u32>,
    released: watch::Sender<bool>,
}

/// The rules of a proxy.
#[derive(Clone, Default)]
pub(super) struct Rules(Arc<Mutex<(u64, Vec<Active>)>>);

/// The fault of a request, and when it may go on.
pub(super) struct Verdict {
    pub(super) fault: Fault,
    hits: watch::Sender<u32>,
    released: watch::Receiver<bool>,
}

impl Verdict {
    /// Says that the request is where the rule wanted it.
    pub(super) fn reached(&self) {
        self.hits.send_modify(|hits| *hits += 1);
    }

    pub(super) async fn released(&mut self) {
        // The sender gone: the rule was removed, and nobody holds it.
        let _ = self.released.wait_for(|released| *released).await;
    }
}

impl Rules {
    pub(super) fn add(&self, rule: Rule) -> Fired {
        let (hits, hit) = watch::channel(0);
        let released = watch::Sender::new(false);
        let mut locked = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        locked.0 += 1;
        let id = locked.0;
        locked.1.push(Active { id, rule, fitting: 0, hits, released: released.clone() });
        Fired { id, rules: self.clone(), hit, released }
    }

    pub(super) fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).1.clear();
    }

    pub(super) fn judge(&self, request: &Asked) -> Option<Verdict> {
        let mut locked = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for active in &mut locked.1 {
            if !active.rule.fits(request) {
                continue;
            }
            active.fitting += 1;
            let (first, last) = (active.rule.skip, active.rule.skip.saturating_add(active.rule.times));
            if active.fitting > first && active.fitting <= last {
                let released = active.released.subscribe();
                return Some(Verdict { fault: active.rule.fault.clone(), hits: active.hits.clone(), released });
            }
        }
        None
    }
}

/// A rule of a proxy, as its maker sees it. It stays when this is dropped.
pub struct Fired {
    id: u64,
    rules: Rules,
    hit: watch::Receiver<u32>,
    released: watch::Sender<bool>,
}

impl Fired {
    /// How many requests it was applied to.
    #[must_use]
    pub fn hits(&self) -> u32 {
        *self.hit.borrow()
    }

    /// Waits until it was applied to so many requests: for a hold, until they are held.
    ///
    /// # Panics
    /// After [`PATIENCE`].
    pub async fn reached(&self, count: u32) {
        let mut hit = self.hit.clone();
        let waiting = hit.wait_for(|hits| *hits >= count);
        let reached = tokio::time::timeout(PATIENCE, waiting).await;
        assert!(matches!(reached, Ok(Ok(_))), "the proxy's rule was applied {} times, not {count}", self.hits());
    }

    /// Lets those go on that are held, and whoever comes next.
    pub fn release(&self) {
        self.released.send_replace(true);
    }

    /// Takes the rule away, and lets those go on that are held.
    pub fn remove(&self) {
        self.release();
        self.rules.0.lock().unwrap_or_else(PoisonError::into_inner).1.retain(|active| active.id != self.id);
    }
}

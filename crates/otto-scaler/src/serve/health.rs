//! What can do its work: told to gRPC health checks and to `/readyz`.

use std::sync::Arc;
use std::time::Duration;

use otto_service::admin::{Admin, Readiness};
use otto_service::grpc::HealthReporter;
use tokio::sync::watch;

use crate::controller::Health;
use crate::grpc::desk::Role;
use crate::inbox::redis::link;
use crate::store::TaskStore;

/// Health names: the two services, and the reader of the event stream.
const SCALER: &str = "ottoscaler.v1.OttoscalerService";
const TASKS: &str = "ottoscaler.v1.TaskService";
const INBOX: &str = "ottoscaler.v1.Inbox";

/// While standing by, the store is asked this often whether it answers, and more often while it does not.
const ASK_EVERY: Duration = Duration::from_secs(5);
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// Longest wait for its answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// How the parts of a leader are.
#[derive(Clone)]
pub(super) struct Vitals {
    pub(super) controller: watch::Receiver<Health>,
    pub(super) inbox: Option<watch::Receiver<link::Health>>,
}

/// Says it.
pub(super) struct Truth {
    reporter: HealthReporter,
    store: Readiness,
    driver: Readiness,
    inbox: Readiness,
    role: watch::Receiver<Role>,
    /// `None`: this replica does not lead.
    vitals: watch::Receiver<Option<Vitals>>,
    /// What a replica that does not lead takes events into. `None`: it takes none.
    shared_store: Option<Arc<dyn TaskStore>>,
    /// What that said last; `None`: nothing yet.
    answered: Option<Result<(), String>>,
    /// Everything can do its work.
    well: watch::Sender<bool>,
}

impl Truth {
    pub(super) fn new(
        reporter: HealthReporter,
        admin: &Admin,
        role: watch::Receiver<Role>,
        vitals: watch::Receiver<Option<Vitals>>,
        shared_store: Option<Arc<dyn TaskStore>>,
    ) -> Self {
        let part = |name| admin.readiness(name);
        let (store, driver, inbox) = (part("task store"), part("driver"), part("event stream"));
        let well = watch::Sender::new(false);
        let truth = Self { reporter, store, driver, inbox, role, vitals, shared_store, answered: None, well };
        truth.tell();
        truth
    }

    /// Whether everything can do its work.
    pub(super) fn well(&self) -> watch::Receiver<bool> {
        self.well.subscribe()
    }

    fn tell(&self) {
        let vitals = self.vitals.borrow().clone();
        let well = match vitals {
            Some(vitals) => self.tell_leading(&vitals),
            None => self.tell_standing_by(),
        };
        self.well.send_if_modified(|was| std::mem::replace(was, well) != well);
    }

    fn say(&self, name: &str, serving: bool) {
        if serving { self.reporter.set_serving(name) } else { self.reporter.set_not_serving(name) }
    }

    fn tell_leading(&self, vitals: &Vitals) -> bool {
        let health = *vitals.controller.borrow();
        // Where others take events, too, they are taken before the driver has told what there is.
        self.say(SCALER, health.store && (health.driver || self.shared_store.is_some()));
        self.say(TASKS, health.store);
        match health.store {
            true => self.store.ready(),
            false => self.store.not_ready("it cannot be read or written"),
        }
        match health.driver {
            true => self.driver.ready(),
            false => self.driver.not_ready("it has not told yet which workers exist"),
        }
        let inbox = vitals.inbox.as_ref().map(|inbox| inbox.borrow().clone());
        match &inbox {
            None => self.inbox.ready(),
            Some(link::Health::Serving) => {
                self.inbox.ready();
                self.say(INBOX, true);
            }
            Some(link::Health::NotServing(why)) => {
                self.inbox.not_ready(why.clone());
                self.say(INBOX, false);
            }
        }
        health.store && health.driver && inbox.is_none_or(|inbox| inbox == link::Health::Serving)
    }

    fn tell_standing_by(&self) -> bool {
        let leader = match &*self.role.borrow() {
            Role::StandBy(Some(peer)) => Some(format!("stands by; {} leads", peer.name)),
            Role::StandBy(None) | Role::Lead(_) => None,
        };
        let says = leader.clone().unwrap_or_else(|| "stands by; no leader is known".to_owned());
        let takes_events = match (&self.shared_store, &self.answered) {
            (None, _) => Err(format!("{says}, and without --redis-url only the leader takes calls")),
            (Some(_), None) => Err("is starting".to_owned()),
            (Some(_), Some(answered)) => answered.clone(),
        };
        self.say(SCALER, takes_events.is_ok());
        self.say(TASKS, takes_events.is_ok());
        match &takes_events {
            Ok(()) => self.store.ready(),
            Err(why) => self.store.not_ready(why.clone()),
        }
        // Nothing is expected of these two here.
        self.driver.ready();
        self.inbox.ready_saying(says);
        self.reporter.forget(INBOX);
        takes_events.is_ok() && leader.is_some()
    }

    /// Asks the store from time to time, while nobody else does.
    async fn ask(store: Option<Arc<dyn TaskStore>>, wait: Duration) -> Result<(), String> {
        let Some(store) = store else { return std::future::pending().await };
        tokio::time::sleep(wait).await;
        match tokio::time::timeout(ANSWER_WITHIN, store.ping()).await {
            Ok(answer) => answer.map_err(|error| error.to_string()),
            Err(_) => Err(format!("no answer within {} s", ANSWER_WITHIN.as_secs())),
        }
    }

    /// Tells every change, for ever.
    pub(super) async fn keep_telling(mut self) {
        loop {
            let vitals = self.vitals.borrow_and_update().clone();
            let standing_by = vitals.is_none();
            self.tell();
            let wait = match &self.answered {
                None => Duration::ZERO,
                Some(Ok(())) => ASK_EVERY,
                Some(Err(_)) => ASK_AGAIN,
            };
            let asked = Self::ask(self.shared_store.clone().filter(|_| standing_by), wait);
            tokio::pin!(asked);
            // Every change of a part is told at once; the question to the store goes on meanwhile.
            let mut vitals = vitals;
            loop {
                let part = async {
                    match &mut vitals {
                        None => std::future::pending().await,
                        Some(Vitals { controller, inbox: None }) => controller.changed().await,
                        Some(Vitals { controller, inbox: Some(inbox) }) => tokio::select! {
                            changed = controller.changed() => changed,
                            changed = inbox.changed() => changed,
                        },
                    }
                };
                let changed = tokio::select! {
                    answer = &mut asked => {
                        self.answered = Some(answer);
                        break;
                    }
                    changed = self.vitals.changed() => {
                        if changed.is_ok() {
                            break;
                        }
                        changed
                    }
                    changed = self.role.changed() => changed,
                    changed = part => changed,
                };
                self.tell();
                if changed.is_err() {
                    // A part ended: that ends the program.
                    std::future::pending::<()>().await;
                }
            }
        }
    }
}

//! Who answers a call: the controller, if this replica leads; otherwise the stored records, or the leader.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use otto_service::auth::ClientAuth;
use otto_service::client::{Channel, Endpoint};
use otto_service::status;
use tokio::sync::watch;
use tonic::{Code, Request, Response, Status};

use super::store_failed;
use crate::controller::board::Board;
use crate::controller::{Applied, ApplyError, Handle};
use crate::event::ScaleEvent;
use crate::leadership::Peer;
use crate::standby::Follower;
use crate::store::TaskStore;
use crate::task::Record;
use crate::worker_events::Publisher;

/// On a call that another replica passed on: it is answered here or not at all.
const FORWARDED: &str = "otto-forwarded";
/// Longest wait for the leader's answer (of a stream: for its beginning).
const PATIENCE: Duration = Duration::from_secs(2);
/// A leader that did not answer is left alone so long.
const AVOIDED: Duration = Duration::from_secs(1);
/// Told to callers that only a leader can serve, while there is none.
const RETRY: Duration = Duration::from_secs(1);

/// What this replica is.
#[derive(Clone, Debug)]
pub(crate) enum Role {
    /// It drives.
    Lead(Lead),
    /// It does not; who does, as far as is known.
    StandBy(Option<Peer>),
}

/// What only a leader has.
#[derive(Clone, Debug)]
pub(crate) struct Lead {
    pub(crate) handle: Handle,
    pub(crate) publisher: Publisher,
}

/// Shared by the services.
pub(crate) struct Desk {
    pub(crate) role: watch::Receiver<Role>,
    /// Records that the controller does not hold.
    pub(crate) store: Arc<dyn TaskStore>,
    /// `None`: only a leader takes events.
    pub(crate) follower: Option<Follower>,
    /// Presented to the leader.
    pub(crate) auth: ClientAuth,
    pub(crate) leader: Mutex<Option<Leader>>,
}

/// A connection to the leader.
#[derive(Debug)]
pub(crate) struct Leader {
    address: String,
    channel: Channel,
    avoid_until: Option<Instant>,
}

impl Desk {
    /// The controller, if this replica leads.
    pub(crate) fn lead(&self) -> Option<Lead> {
        match &*self.role.borrow() {
            Role::Lead(lead) => Some(lead.clone()),
            Role::StandBy(_) => None,
        }
    }

    /// Applies an event, whether this replica leads or not.
    pub(crate) async fn apply(&self, event: ScaleEvent) -> Result<Applied, ApplyError> {
        if let Some(lead) = self.lead() {
            match lead.handle.apply(event.clone()).await {
                // It gives its place to another in this moment; applied twice is applied once.
                Err(ApplyError::Stopping) if self.follower.is_some() => {}
                result => return result,
            }
        }
        match &self.follower {
            Some(follower) => follower.apply(&event).await,
            None => {
                let retry_after = u32::try_from(RETRY.as_millis()).unwrap_or(u32::MAX);
                let message = format!("without --redis-url only the leader takes events, and {}", self.who_leads());
                Err(ApplyError::Unavailable { retry_after, message })
            }
        }
    }

    /// A task's record, as it is now.
    pub(crate) async fn record(&self, task_id: &str) -> Result<Option<Arc<Record>>, Status> {
        if let Some(record) = self.lead().and_then(|lead| lead.handle.board().get(task_id)) {
            return Ok(Some(record));
        }
        if self.lead().is_none() && self.follower.is_none() {
            return Err(self.elsewhere());
        }
        // Ended long ago: not held in memory, but perhaps stored.
        let stored = self.store.get(task_id).await.map_err(|error| store_failed(&error))?;
        Ok(stored.map(Arc::new))
    }

    /// All tasks.
    pub(crate) async fn board(&self) -> Result<Arc<Board>, Status> {
        match (self.lead(), &self.follower) {
            (Some(lead), _) => Ok(Arc::clone(lead.handle.board())),
            (None, Some(follower)) => follower.board().await.map_err(|error| store_failed(&error)),
            (None, None) => Err(self.elsewhere()),
        }
    }

    /// Only a leader can do it, and this is none.
    pub(crate) fn elsewhere(&self) -> Status {
        status::unavailable(RETRY, format!("this replica stands by: {}", self.who_leads()))
    }

    fn who_leads(&self) -> String {
        match &*self.role.borrow() {
            Role::StandBy(Some(Peer { name, address: Some(address) })) => format!("{name} leads, at {address}"),
            Role::StandBy(Some(Peer { name, address: None })) => format!("{name} leads"),
            Role::StandBy(None) => "no leader is known yet".to_owned(),
            Role::Lead(_) => "this one leads".to_owned(),
        }
    }

    /// Passes a call on to the leader. `None`: it is to be answered here, because this replica leads, the call was passed
    /// on once before, or there is no leader that answers.
    pub(crate) async fn ask_leader<M, T, F>(
        &self,
        request: &Request<M>,
        call: impl FnOnce(Channel, Request<M>) -> F,
    ) -> Option<Result<Response<T>, Status>>
    where
        M: Clone,
        F: Future<Output = Result<Response<T>, Status>>,
    {
        if request.metadata().contains_key(FORWARDED) {
            return None;
        }
        let channel = self.channel()?;
        let mut forwarded = Request::new(request.get_ref().clone());
        forwarded.metadata_mut().insert(FORWARDED, tonic::metadata::MetadataValue::from_static("1"));
        match tokio::time::timeout(PATIENCE, call(channel, forwarded)).await {
            Ok(Ok(response)) => Some(Ok(Response::new(response.into_inner()))),
            Ok(Err(status)) if !is_absent(&status) => {
                let details = bytes::Bytes::copy_from_slice(status.details());
                Some(Err(Status::with_details(status.code(), status.message(), details)))
            }
            _ => {
                if let Some(leader) = &mut *self.leader.lock().unwrap_or_else(PoisonError::into_inner) {
                    leader.avoid_until = Some(Instant::now() + AVOIDED);
                }
                None
            }
        }
    }

    fn channel(&self) -> Option<Channel> {
        let address = match &*self.role.borrow() {
            Role::StandBy(Some(Peer { address: Some(address), .. })) => address.clone(),
            Role::StandBy(_) | Role::Lead(_) => return None,
        };
        let mut leader = self.leader.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *leader {
            Some(known) if known.address == address => {
                known.avoid_until = known.avoid_until.filter(|until| Instant::now() < *until);
                known.avoid_until.is_none().then(|| known.channel.clone())
            }
            _ => {
                let endpoint = Endpoint::new(&format!("http://{address}"), &self.auth);
                let endpoint = endpoint.inspect_err(|error| {
                    tracing::warn!(address, error = format!("{error:#}"), "the leader cannot be asked");
                });
                let channel = endpoint.ok()?.connect_lazy();
                *leader = Some(Leader { address, channel: channel.clone(), avoid_until: None });
                Some(channel)
            }
        }
    }
}

/// Nobody answered, or one that cannot (any more).
fn is_absent(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable
            | Code::DeadlineExceeded
            | Code::Cancelled
            | Code::Unknown
            | Code::Internal
            | Code::Unauthenticated
    )
}

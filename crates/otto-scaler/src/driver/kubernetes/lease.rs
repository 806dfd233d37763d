//! Leader election by a Lease (`coordination.k8s.io/v1`) in the namespace of the workers.
//!
//! <https://kubernetes.io/docs/concepts/architecture/leases/>; the writes are those of client-go's `leaderelection`, so
//! that `kubectl get lease` and its readers see what they know. Writes carry the version that was read, so of two
//! candidates one wins. Who stands by watches the one object: a Lease that is released is taken at once. The leader
//! writes once per renewal and reads nothing. The rules are in [`election`].

use std::time::Duration;

use anyhow::{Context, bail};
use futures::StreamExt;
use futures::stream::BoxStream;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::Api;
use kube::api::{PostParams, WatchEvent, WatchParams};
use otto_service::settings::parse_duration;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use self::election::{Election, Loss, Seen, Step, Written};
use super::cluster::Cluster;
use super::names::LEASE;
use crate::leadership::{Leadership, Peer, now};

mod election;

pub(crate) use election::Timing;

/// On the Lease: where the leader's gRPC server is, as `HOST:PORT`.
pub(crate) const ADDRESS_ANNOTATION: &str = "ottoscaler.io/grpc-address";
/// A watch is ended by the server after this, and begun again.
const WATCH_SECONDS: u32 = 290;
/// What may be done with the Lease, for messages.
const VERBS: &str = "a scaler needs get, watch, create and update of leases.coordination.k8s.io";

/// Settings of the election.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Leader election (driver kubernetes)")]
#[group(id = "election")]
pub(crate) struct Settings {
    /// A leader that is silent for so long is followed by another.
    #[arg(long, env = "OTTO_LEASE_DURATION", value_name = "TIME", default_value = "15s", value_parser = parse_duration)]
    pub(crate) lease_duration: Duration,
    /// A leader that cannot renew its Lease for so long ends.
    #[arg(long, env = "OTTO_LEASE_RENEW_DEADLINE", value_name = "TIME", default_value = "10s", value_parser = parse_duration)]
    pub(crate) lease_renew_deadline: Duration,
    /// Time from an attempt that failed to the next.
    #[arg(long, env = "OTTO_LEASE_RETRY", value_name = "TIME", default_value = "2s", value_parser = parse_duration)]
    pub(crate) lease_retry: Duration,
    /// Where other replicas reach this one's gRPC server: HOST:PORT. Default: the environment's POD_IP with the port of
    /// --grpc-addr; or --grpc-addr, where that is one address.
    #[arg(long, env = "OTTO_ADVERTISE_ADDR", value_name = "HOST:PORT", value_parser = advertised)]
    pub(crate) advertise_addr: Option<String>,
}

impl Settings {
    /// # Errors
    /// Names the flags that do not fit each other.
    pub(crate) fn timing(&self) -> anyhow::Result<Timing> {
        let timing =
            Timing { lease: self.lease_duration, renew_deadline: self.lease_renew_deadline, retry: self.lease_retry };
        timing.check().map_err(|reason| anyhow::anyhow!(reason))?;
        Ok(timing)
    }

    /// Where others reach `grpc`, if that is known.
    pub(crate) fn address(&self, grpc: std::net::SocketAddr) -> Option<String> {
        if let Some(address) = &self.advertise_addr {
            return Some(address.clone());
        }
        if !grpc.ip().is_unspecified() {
            return Some(grpc.to_string());
        }
        let ip: std::net::IpAddr = std::env::var("POD_IP").ok()?.trim().parse().ok()?;
        Some(std::net::SocketAddr::new(ip, grpc.port()).to_string())
    }
}

fn advertised(text: &str) -> Result<String, String> {
    let accepted = "accepted: HOST:PORT, such as 10.0.0.7:9090";
    otto_service::client::parse_url(&format!("http://{text}")).map_err(|_| accepted.to_owned())?;
    match text.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok()) {
        Some(port) if port > 0 => Ok(text.to_owned()),
        _ => Err(accepted.to_owned()),
    }
}

/// How the election stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// This process leads. Each turn of leadership has a higher number than all before it; 0: it is not known.
    Leading { turn: u64 },
    /// It does not; who does, as far as is known.
    StandingBy(Option<Peer>),
}

/// A candidate, made by [`Elector::new`], consumed by [`Elector::run`].
pub(crate) struct Elector {
    api: Api<Lease>,
    namespace: String,
    timing: Timing,
    election: Election,
    /// As it was seen last.
    lease: Option<Lease>,
    /// Trouble that was told last.
    said: Option<String>,
    me: Peer,
    leadership: Leadership,
    standing: watch::Sender<Standing>,
}

impl Elector {
    /// A candidate. `name`: one that no other process has, nor this program after a restart ([`identity`]). `ended`:
    /// names of candidates that have certainly ended. `address`: where others reach it.
    pub(crate) fn new(
        cluster: &Cluster,
        timing: Timing,
        name: String,
        ended: Vec<String>,
        address: Option<String>,
    ) -> Self {
        let me = Peer { name, address };
        Self {
            api: Api::namespaced(cluster.client(), cluster.namespace()),
            namespace: cluster.namespace().to_owned(),
            timing,
            election: Election::new(me.name.clone(), timing, ended),
            lease: None,
            said: None,
            me,
            leadership: Leadership::none_yet(),
            standing: watch::Sender::new(Standing::StandingBy(None)),
        }
    }

    /// Its name in the Lease; no other process has it, nor this program after a restart.
    pub(crate) fn name(&self) -> &str {
        &self.me.name
    }

    /// What it may do, at any time.
    pub(crate) fn leadership(&self) -> Leadership {
        self.leadership.clone()
    }

    /// How the election stands.
    pub(crate) fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.subscribe()
    }

    /// Stands by until the Lease is free, then leads until `release`: then the Lease is given back. After `drain`
    /// nothing is taken any more.
    ///
    /// # Errors
    /// The Lease was lost, or may not be read or written at all. The caller must end: others lead by now.
    pub(crate) async fn run(mut self, drain: CancellationToken, release: CancellationToken) -> anyhow::Result<()> {
        if !self.stand_by(&drain).await? {
            return Ok(());
        }
        let lost = loop {
            match self.election.next(now()) {
                Step::Write => self.renew().await,
                Step::Wait(until) => tokio::select! {
                    biased;
                    () = release.cancelled() => {
                        self.give_back().await;
                        return Ok(());
                    }
                    () = sleep_until(until) => {}
                },
                Step::Lost(why) => break why,
            }
        };
        self.leadership.extend(0);
        self.standing.send_replace(Standing::StandingBy(None));
        if release.is_cancelled() && matches!(lost, Loss::Expired(_) | Loss::NotRenewed(_)) {
            // It was to be given up anyway.
            return Ok(());
        }
        bail!("the Lease `{LEASE}` in namespace `{}` is lost: {lost}; another scaler may lead", self.namespace)
    }

    /// True: this process leads. False: it was told to drain before.
    async fn stand_by(&mut self, drain: &CancellationToken) -> anyhow::Result<bool> {
        let mut watching: Option<Watching> = None;
        let mut began = Instant::now();
        let mut troubled = false;
        let mut known = false;
        while !drain.is_cancelled() {
            let Some(events) = &mut watching else {
                match self.look().await {
                    Ok(events) => {
                        if std::mem::take(&mut troubled) {
                            tracing::info!(namespace = self.namespace, "the Lease is seen again");
                        }
                        known = true;
                        began = Instant::now();
                        watching = Some(events);
                    }
                    Err(error) if !known && is_refusal(&error) => {
                        return Err(error).with_context(|| {
                            format!("the Lease `{LEASE}` in namespace `{}` cannot be used ({VERBS})", self.namespace)
                        });
                    }
                    Err(error) => {
                        if !std::mem::replace(&mut troubled, true) {
                            let error = format!("{:#}", anyhow::Error::new(error));
                            tracing::warn!(namespace = self.namespace, error, "the Lease cannot be seen; trying again");
                        }
                        // Whatever was seen before stays true for so long as the rules say.
                        let _ = drain.run_until_cancelled(tokio::time::sleep(self.timing.retry)).await;
                    }
                }
                continue;
            };
            match self.election.next(now()) {
                Step::Write => {
                    let refused = self.take().await;
                    if self.election.valid_until().is_some() {
                        return Ok(true);
                    }
                    if refused {
                        watching = None;
                    }
                }
                Step::Wait(until) => tokio::select! {
                    () = drain.cancelled() => {}
                    event = events.next() => match event {
                        Some(Ok(WatchEvent::Added(lease) | WatchEvent::Modified(lease))) => self.saw(Some(lease)),
                        Some(Ok(WatchEvent::Deleted(_))) => self.saw(None),
                        Some(Ok(WatchEvent::Bookmark(_))) => {}
                        // It has ended, as watches do; or the version is too old for it (410).
                        Some(Ok(WatchEvent::Error(_)) | Err(_)) | None => {
                            watching = None;
                            if began.elapsed() < self.timing.retry {
                                let _ = drain.run_until_cancelled(tokio::time::sleep(self.timing.retry)).await;
                            }
                        }
                    },
                    () = sleep_until(until) => {}
                },
                // Only a leader loses.
                Step::Lost(_) => watching = None,
            }
        }
        Ok(false)
    }

    /// Reads the Lease, and watches it from there.
    async fn look(&mut self) -> Result<Watching, kube::Error> {
        let within = self.timing.request();
        let lease = self.read(within).await?;
        self.saw(lease);
        // Without a Lease there is no version to begin with: it is created at once, or an old holder's time runs out.
        let Some(version) = self.lease.as_ref().and_then(|lease| lease.metadata.resource_version.clone()) else {
            return Ok(futures::stream::pending().boxed());
        };
        let only_this = WatchParams::default().fields(&format!("metadata.name={LEASE}")).timeout(WATCH_SECONDS);
        match timeout(within, self.api.watch(&only_this, &version)).await {
            Ok(events) => Ok(events?.boxed()),
            Err(_) => Err(late()),
        }
    }

    async fn read(&self, within: Duration) -> Result<Option<Lease>, kube::Error> {
        timeout(within, self.api.get_opt(LEASE)).await.unwrap_or_else(|_| Err(late()))
    }

    fn saw(&mut self, lease: Option<Lease>) {
        self.election.saw(lease.as_ref().map(seen), now());
        if lease.is_some() {
            self.lease = lease;
        }
        if self.election.valid_until().is_some() {
            return;
        }
        let address = || self.lease.as_ref()?.metadata.annotations.as_ref()?.get(ADDRESS_ANNOTATION).cloned();
        let leader = self.election.holder().map(|name| Peer { name: name.to_owned(), address: address() });
        self.standing.send_if_modified(|standing| {
            let changed = *standing != Standing::StandingBy(leader.clone());
            if changed {
                match &leader {
                    Some(leader) => tracing::info!(leader = leader.name, "standing by; another scaler leads"),
                    None => tracing::info!("no scaler leads"),
                }
            }
            *standing = Standing::StandingBy(leader);
            changed
        });
    }

    /// Tries to become the leader. True: the Lease is another than the one that was seen.
    async fn take(&mut self) -> bool {
        let (sent, result) = self.write(self.ours(), self.timing.request()).await;
        match result {
            Ok(lease) => {
                // Versions of a cluster's objects only rise: https://kep.k8s.io/5504. A Lease that is deleted and made
                // again does not begin anew.
                let turn = seen(&lease).version.parse().unwrap_or_default();
                tracing::info!(me = self.me.name, turn, before = self.election.holder(), "leading: the Lease is ours");
                self.written(sent, lease);
                self.standing.send_replace(Standing::Leading { turn });
                false
            }
            Err(error) => self.not_written(sent, &error, "cannot be taken"),
        }
    }

    async fn renew(&mut self) {
        let left = self.election.deadline().unwrap_or_default().saturating_sub(now());
        let within = self.timing.renewal().min(Duration::from_nanos(left)).max(Duration::from_millis(1));
        let (sent, result) = self.write(self.ours(), within).await;
        match result {
            Ok(lease) => self.written(sent, lease),
            Err(error) => {
                if self.not_written(sent, &error, "was not renewed") {
                    // Perhaps by an earlier write of ours whose answer was lost.
                    match self.read(within).await {
                        Ok(lease) => self.saw(lease),
                        Err(_) => self.election.wrote(sent, Written::Unclear, now()),
                    }
                }
            }
        }
    }

    /// True: the Lease is another than the one that was seen.
    fn not_written(&mut self, sent: u64, error: &kube::Error, what: &str) -> bool {
        let code = match error {
            kube::Error::Api(status) => status.code,
            _ => 0,
        };
        // What is to be created and not found is the namespace.
        let refused = code == 409 || (code == 404 && self.election.exists());
        let written = if refused { Written::Refused } else { Written::Unclear };
        self.election.wrote(sent, written, now());
        if refused {
            tracing::debug!(%error, "the Lease {what}: it was changed by another");
            return true;
        }
        let hint = if is_refusal(error) { format!("; {VERBS}") } else { String::new() };
        let text = format!("the Lease {what}: {error}{hint}");
        if self.said.as_ref() != Some(&text) {
            tracing::warn!(namespace = self.namespace, "{text}; trying again");
            self.said = Some(text);
        }
        false
    }

    fn written(&mut self, sent: u64, lease: Lease) {
        self.election.wrote(sent, Written::Done(seen(&lease)), now());
        self.lease = Some(lease);
        self.said = None;
        self.extend();
    }

    /// What is left of the right to act, from the sending of the last write.
    fn extend(&self) {
        self.leadership.extend(self.election.valid_until().unwrap_or_default());
    }

    /// Lets others lead at once.
    async fn give_back(&mut self) {
        self.leadership.extend(0);
        self.standing.send_replace(Standing::StandingBy(None));
        let mut lease = self.ours();
        if let Some(annotations) = &mut lease.metadata.annotations {
            annotations.remove(ADDRESS_ANNOTATION);
        }
        if let Some(spec) = &mut lease.spec {
            spec.holder_identity = Some(String::new());
            // As client-go does: nobody has to wait.
            spec.lease_duration_seconds = Some(1);
        }
        match self.write(lease, self.timing.request()).await.1 {
            Ok(_) => tracing::info!(me = self.me.name, "the Lease is given back"),
            Err(error) => {
                let wait = self.timing.lease;
                tracing::warn!(%error, "the Lease could not be given back: another scaler waits for up to {wait:?}");
            }
        }
    }

    /// The Lease with our name in it.
    fn ours(&self) -> Lease {
        let mut lease = self.lease.clone().unwrap_or_else(|| Lease {
            metadata: ObjectMeta { name: Some(LEASE.to_owned()), ..ObjectMeta::default() },
            spec: None,
        });
        lease.metadata.managed_fields = None;
        let annotations = lease.metadata.annotations.get_or_insert_default();
        match &self.me.address {
            Some(address) => drop(annotations.insert(ADDRESS_ANNOTATION.to_owned(), address.clone())),
            None => drop(annotations.remove(ADDRESS_ANNOTATION)),
        }
        let time = Some(MicroTime(Timestamp::now()));
        let before = lease.spec.take().unwrap_or_default();
        let mine = before.holder_identity.as_deref() == Some(self.me.name.as_str());
        let transitions = before.lease_transitions.map_or(0, |count| count.saturating_add(i32::from(!mine)));
        let seconds = self.timing.lease.as_secs() + u64::from(self.timing.lease.subsec_nanos() > 0);
        lease.spec = Some(LeaseSpec {
            holder_identity: Some(self.me.name.clone()),
            lease_duration_seconds: Some(i32::try_from(seconds).unwrap_or(i32::MAX)),
            acquire_time: if mine { before.acquire_time } else { time.clone() },
            renew_time: time,
            lease_transitions: Some(transitions),
            ..before
        });
        lease
    }

    /// Writes it over the version it was made from. The time is that of the sending.
    async fn write(&self, lease: Lease, within: Duration) -> (u64, Result<Lease, kube::Error>) {
        let parameters = PostParams::default();
        let exists = self.election.exists();
        let mut lease = lease;
        if !exists {
            lease.metadata = ObjectMeta {
                name: lease.metadata.name,
                labels: lease.metadata.labels,
                annotations: lease.metadata.annotations,
                ..ObjectMeta::default()
            };
        }
        let sent = now();
        let call = async {
            if exists {
                self.api.replace(LEASE, &parameters, &lease).await
            } else {
                self.api.create(&parameters, &lease).await
            }
        };
        (sent, timeout(within, call).await.unwrap_or_else(|_| Err(late())))
    }
}

type Watching = BoxStream<'static, Result<WatchEvent<Lease>, kube::Error>>;

fn late() -> kube::Error {
    kube::Error::Service("no answer in time".into())
}

/// Neither passes by itself.
fn is_refusal(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if [401, 403].contains(&status.code))
}

fn seen(lease: &Lease) -> Seen {
    let spec = lease.spec.as_ref();
    let seconds = spec.and_then(|spec| spec.lease_duration_seconds).unwrap_or_default();
    Seen {
        version: lease.metadata.resource_version.clone().unwrap_or_default(),
        holder: spec.and_then(|spec| spec.holder_identity.clone()).unwrap_or_default(),
        duration: Duration::from_secs(u64::try_from(seconds).unwrap_or_default()),
    }
}

/// The Pod's name (a Pod's host is named like it), and what tells this process from any other.
pub(crate) fn identity() -> String {
    let pod = std::env::var("POD_NAME").unwrap_or_default();
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name =
        [pod.trim(), host.trim()].into_iter().find(|name| !name.is_empty() && !name.contains(char::is_whitespace));
    format!("{}_{}", name.unwrap_or("unknown"), uuid::Uuid::new_v4())
}

/// Until a time of CLOCK_BOOTTIME; the sleep itself may last longer while the machine sleeps, which the rules notice.
async fn sleep_until(until: u64) {
    tokio::time::sleep(Duration::from_nanos(until.saturating_sub(now()))).await;
}

#[cfg(test)]
mod tests;

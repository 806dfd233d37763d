//! A network and a server that fail in every way: one Pod comes of one launch, and no change is lost.

use http::Method;
use k8s_openapi::api::scheduling::v1::PriorityClass;
use otto_testkit::{Fault, Rule};
use serde_json::json;

use super::*;
use crate::leadership;

struct Faulty<'a> {
    namespace: Namespace<'a>,
    proxy: FaultProxy,
    driving: Driving,
}

async fn faulty(name: &str) -> Faulty<'static> {
    let plane = ControlPlane::shared().await.unwrap();
    let namespace = plane.namespace(name).await.unwrap();
    let proxy = FaultProxy::start(plane).await.unwrap();
    let kubeconfig = namespace.scaler_kubeconfig(Some(&proxy.url())).await.unwrap();
    let driving = Driving::start(&kubeconfig).await;
    driving.list().await;
    driving.checked().await;
    Faulty { namespace, proxy, driving }
}

impl Faulty<'_> {
    async fn has_pods(&self, count: usize) {
        let pods = self.namespace.list_pods().await.unwrap();
        assert_eq!(pods.len(), count);
        let events = self.namespace.audit().unwrap();
        let made = events.iter().filter(|event| event.is_created_pod()).count();
        assert!(made <= count, "{made} were created in all");
    }
}

/// Whatever happens to its first tries, a creation ends with one Pod.
#[tokio::test]
async fn a_creation_is_asked_for_until_it_is_known() {
    let faulty = faulty("unclear").await;
    let faults = [
        Fault::CutBefore,
        Fault::CutAfter,
        Fault::Answer(500, None),
        Fault::Answer(503, None),
        Fault::Answer(504, None),
        Fault::Answer(429, None),
        Fault::AnswerAfter(500),
        Fault::AnswerAfter(503),
        Fault::AnswerAfter(504),
    ];
    for (number, fault) in faults.iter().enumerate() {
        let task = format!("t{number}");
        let rule = faulty.proxy.add(Rule::create_pod(fault.clone()).containing(&pod_name(&task)).times(2));
        // One that is certainly not created yet comes again.
        let created = eventually("an answer", || async {
            Some(faulty.driving.create(&task).await).filter(|answer| !matches!(answer, Err(DriverError::Busy { .. })))
        });
        created.await.unwrap_or_else(|error| panic!("{fault:?}: {error:?}"));
        assert!(rule.hits() >= 1, "{fault:?}");
        faulty.proxy.clear();
        faulty.has_pods(number + 1).await;
    }
}

/// The watch says that it exists before the answer does.
#[tokio::test]
async fn what_the_watch_shows_is_not_asked_for_again() {
    let faulty = faulty("seen").await;
    let rule = faulty.proxy.add(Rule::create_pod(Fault::HoldAfter));
    let creation = faulty.driving.creating("t");
    rule.reached(1).await;
    eventually("the watch shows it", || async { (faulty.driving.list().await.len() == 1).then_some(()) }).await;
    faulty.proxy.cut();
    bounded(creation).await.unwrap().unwrap();
    assert_eq!(faulty.proxy.count(&Method::POST, "/pods?") - 1, 1);
}

/// The first request fills the quota, and its answer is lost; the second one is refused for the first one's sake.
#[tokio::test]
async fn a_refusal_after_an_unclear_answer_is_looked_into() {
    let faulty = faulty("filled").await;
    let _ = faulty.proxy.add(Rule::watch_pods(Fault::SilentWatch));
    let _ = faulty.proxy.add(Rule::create_pod(Fault::CutAfter).times(1));
    // The answer to whoever asks again, whatever the reason: a refusal.
    let _ = faulty.proxy.add(Rule::create_pod(Fault::Answer(403, None)));
    faulty.proxy.end_watches();
    faulty.driving.create("t").await.unwrap();
    faulty.has_pods(1).await;
    let outcome = refused(faulty.driving.create("other").await);
    assert_eq!(outcome.class, Class::Admission);
}

#[tokio::test]
async fn a_server_that_wants_a_pause_gets_it() {
    let faulty = faulty("pause").await;
    let _ = faulty.proxy.add(Rule::create_pod(Fault::Answer(429, Some(2))).times(1));
    let start = Instant::now();
    faulty.driving.create("t").await.unwrap();
    assert!(start.elapsed() >= Duration::from_secs(2), "{:?}", start.elapsed());
    assert_eq!(faulty.proxy.count(&Method::POST, "/pods?") - 1, 2);

    // Everything waits, not only who was told to.
    let _ = faulty.proxy.add(Rule::delete_pod(Fault::Answer(503, Some(2))).times(1));
    eventually("it is known", || async { (faulty.driving.list().await.len() == 1).then_some(()) }).await;
    let start = Instant::now();
    let error = faulty.driving.driver.stop(&key("t")).await.unwrap_err().to_string();
    assert!(error.contains("503"), "{error}");
    faulty.driving.create("u").await.unwrap();
    assert!(start.elapsed() >= Duration::from_secs(2), "{:?}", start.elapsed());
}

/// Certainly not created: others may go first, and the reader is told.
#[tokio::test]
async fn a_server_that_is_always_busy_is_told() {
    let faulty = faulty("busy").await;
    let _ = faulty.proxy.add(Rule::create_pod(Fault::Answer(429, None)));
    let (class, message) = busy(faulty.driving.create("t").await);
    assert_eq!(class, Class::Infrastructure);
    assert!(message.contains("429"), "{message}");
    faulty.proxy.clear();
    faulty.driving.create("t").await.unwrap();
    faulty.has_pods(1).await;
}

/// Others go first after a while, whoever waits is told, and it is the same Pod that is asked for again.
#[tokio::test]
async fn a_creation_that_stays_unclear_gives_way() {
    let faulty = faulty("long").await;
    let _ = faulty.proxy.add(Rule::create_pod(Fault::CutBefore));
    let Err(DriverError::Busy { class, message, unclear_for, .. }) = faulty.driving.create("t").await else { panic!() };
    assert_eq!(class, Class::Infrastructure);
    assert!(message.starts_with("nobody knows yet whether the Pod was created"), "{message}");
    assert!((60_000..=70_000).contains(&unclear_for), "{unclear_for}");
    faulty.proxy.clear();
    faulty.driving.create("t").await.unwrap();
    faulty.has_pods(1).await;

    // Who answers that it failed is through with it.
    let _ = faulty.proxy.add(Rule::create_pod(Fault::Answer(500, None)));
    let Err(DriverError::Busy { unclear_for: 0, .. }) = faulty.driving.create("s").await else { panic!() };
    faulty.proxy.clear();

    // One that did come through, which neither an answer nor the watch tells.
    let _ = faulty.proxy.add(Rule::watch_pods(Fault::SilentWatch));
    faulty.proxy.end_watches();
    let _ = faulty.proxy.add(Rule::create_pod(Fault::CutAfter).times(1));
    let _ = faulty.proxy.add(Rule::create_pod(Fault::Answer(500, None)));
    let looks = faulty.proxy.add(Rule::of(Method::GET, "/pods/", Fault::Answer(500, None)));
    busy(faulty.driving.create("u").await);
    assert!(looks.hits() >= 1);
    // A refusal of the next call is not believed without a look, either.
    faulty.proxy.clear();
    let _ = faulty.proxy.add(Rule::create_pod(Fault::Answer(403, None)));
    faulty.driving.create("u").await.unwrap();
    faulty.has_pods(2).await;
}

#[tokio::test]
async fn without_leadership_nothing_is_written_and_nothing_concluded() {
    let plane = ControlPlane::shared().await.unwrap();
    let namespace = plane.namespace("leader").await.unwrap();
    let proxy = FaultProxy::start(plane).await.unwrap();
    let kubeconfig = namespace.scaler_kubeconfig(Some(&proxy.url())).await.unwrap();
    let leadership = Leadership::none_yet();
    let lasts = |time: Duration| leadership.extend(leadership::now() + u64::try_from(time.as_nanos()).unwrap());
    let driving = Driving::open(&kubeconfig, leadership.clone(), options(&[])).await;
    // A standby follows, and does nothing else.
    driving.list().await;
    driving.checked().await;
    assert!(driving.driver.stop(&key("t")).await.is_ok(), "there is nothing to stop");
    let creation = driving.creating("t");
    // Without a leadership it gets to its end, which is none, in one go.
    eventually("it is given up", || async { driving.driver.shared.workers.is_making(&key("t")).then_some(()) }).await;

    lasts(Duration::from_secs(60));
    driving.create("u").await.unwrap();
    eventually("u is known", || async { (driving.list().await.len() == 1).then_some(()) }).await;
    assert!(!creation.is_finished());
    assert_eq!(namespace.list_pods().await.unwrap().len(), 1, "a creation that was given up stays so");

    // The request ends before the leadership does, though the server takes its time.
    let held = proxy.add(Rule::create_pod(Fault::HoldBefore));
    lasts(Duration::from_secs(10));
    let creation = driving.creating("v");
    held.reached(1).await;
    eventually("it is lost", || async { leadership.left().is_none().then_some(()) }).await;
    held.release();
    tokio::time::sleep(Duration::from_millis(300)).await;
    // It may have given way to others while it was the leader's.
    if creation.is_finished() {
        busy(creation.await.unwrap());
    }
    assert_eq!(namespace.list_pods().await.unwrap().len(), 1);
    let error = driving.driver.stop(&key("u")).await.unwrap_err().to_string();
    assert!(error.contains("not the leader"), "{error}");
    assert!(namespace.pods().get(&pod_name("u")).await.unwrap().metadata.deletion_timestamp.is_none());
}

#[tokio::test]
async fn no_change_is_lost_when_watches_are_cut() {
    let mut faulty = faulty("cuts").await;
    for (number, cut) in [0, 1, 2, 3].into_iter().cycle().take(12).enumerate() {
        let task = format!("t{number}");
        match cut {
            0 => faulty.proxy.cut(),
            1 => faulty.proxy.end_watches(),
            2 => faulty.proxy.fail_watches(410),
            _ => faulty.proxy.fail_watches(500),
        }
        faulty.driving.create(&task).await.unwrap();
        faulty.driving.told(&task, created).await;
        let pod = pod_name(&task);
        faulty.namespace.scheduled(&pod).await.unwrap();
        faulty.namespace.end_pod(&pod, 0, "").await.unwrap();
        faulty.driving.told(&task, ended).await;
    }
    faulty.has_pods(12).await;
}

/// What is deleted while nobody looks is found missing by the next list.
#[tokio::test]
async fn who_vanished_meanwhile_is_gone() {
    let mut faulty = faulty("vanished").await;
    for task in ["stays", "goes"] {
        faulty.driving.create(task).await.unwrap();
        faulty.driving.told(task, created).await;
    }
    let _ = faulty.proxy.add(Rule::watch_pods(Fault::CutBefore));
    faulty.proxy.end_watches();
    faulty.namespace.let_go(&pod_name("goes")).await.unwrap();
    // The version to go on from is forgotten, too: everything must be listed again.
    faulty.proxy.clear();
    let _ = faulty.proxy.add(Rule::watch_pods(Fault::WatchError(410)).times(1));
    faulty.driving.told("goes", |state| ended(state) || *state == State::Gone).await;
    eventually("one is left", || async { (faulty.driving.list().await.len() == 1).then_some(()) }).await;
    assert_eq!(faulty.driving.list().await[0].key, key("stays"));
}

/// A server without streaming lists is asked for pages.
#[tokio::test]
async fn lists_in_pages_do_as_well() {
    let plane = ControlPlane::shared().await.unwrap();
    let namespace = plane.namespace("pages").await.unwrap();
    let proxy = FaultProxy::start(plane).await.unwrap();
    let kubeconfig = namespace.scaler_kubeconfig(Some(&proxy.url())).await.unwrap();
    let _ = proxy.add(Rule::watch_pods(Fault::Answer(422, None)).times(1));
    let mut driving = Driving::start(&kubeconfig).await;
    assert_eq!(driving.list().await, []);
    driving.checked().await;
    assert_eq!(proxy.count(&Method::GET, "limit="), 1);
    driving.create("t").await.unwrap();
    driving.told("t", created).await;
    proxy.fail_watches(410);
    driving.create("u").await.unwrap();
    driving.told("u", created).await;
    assert_eq!(driving.list().await.len(), 2);
    assert!(proxy.count(&Method::GET, "limit=") >= 2);
}

/// One that fell silent once is asked for a streaming list again when everything is listed anew.
#[tokio::test]
async fn a_streaming_list_that_is_silent_is_tried_again_later() {
    let plane = ControlPlane::shared().await.unwrap();
    let namespace = plane.namespace("silent-list").await.unwrap();
    let proxy = FaultProxy::start(plane).await.unwrap();
    let kubeconfig = namespace.scaler_kubeconfig(Some(&proxy.url())).await.unwrap();
    let silent = proxy.add(Rule::watch_pods(Fault::SilentWatch).times(1));
    let mut driving = Driving::start(&kubeconfig).await;
    silent.reached(1).await;
    assert_eq!(driving.list().await, []);
    let asked = |what: &str| {
        proxy.asked().iter().filter(|asked| asked.path.ends_with("/pods") && asked.query.contains(what)).count()
    };
    assert_eq!((asked("sendInitialEvents"), asked("limit=")), (1, 1));
    driving.checked().await;
    driving.create("t").await.unwrap();
    driving.told("t", created).await;
    proxy.fail_watches(410);
    eventually("it is tried again", || async { (asked("sendInitialEvents") == 2).then_some(()) }).await;
    driving.create("u").await.unwrap();
    driving.told("u", created).await;
    assert_eq!(asked("limit="), 1);
}

#[tokio::test]
async fn pages_are_put_together() {
    let plane = ControlPlane::shared().await.unwrap();
    let namespace = plane.namespace("small-pages").await.unwrap();
    let driving = Driving::synced(&namespace).await;
    for number in 0..5 {
        driving.create(&format!("t{number}")).await.unwrap();
    }
    let cluster = cluster(&namespace.scaler_kubeconfig(None).await.unwrap()).await;
    let listed = std::sync::Mutex::new(Vec::new());
    let synced = CancellationToken::new();
    let each = |event| match event {
        feed::Event::Listed(pod) => listed.lock().unwrap().push(pod.metadata.name.unwrap()),
        feed::Event::Synced => synced.cancel(),
        _ => {}
    };
    let feed = feed::Feed::in_pages_of(2, &cluster, watch::selection(), each);
    bounded(feed.run(synced.clone())).await;
    let mut listed = listed.into_inner().unwrap();
    listed.sort();
    let mut expected: Vec<_> = (0..5).map(|number| pod_name(&format!("t{number}"))).collect();
    expected.sort();
    assert_eq!(listed, expected);
}

/// A scaler that starts before its API server waits for it, and says so.
#[tokio::test]
async fn a_server_that_is_away_at_the_start_is_waited_for() {
    let plane = ControlPlane::shared().await.unwrap();
    let namespace = plane.namespace("away").await.unwrap();
    let proxy = FaultProxy::start(plane).await.unwrap();
    let kubeconfig = namespace.scaler_kubeconfig(Some(&proxy.url())).await.unwrap();
    let down = proxy.add(Rule::all(Fault::Answer(503, None)));
    let dry = proxy.add(Rule::all(Fault::CutBefore));
    let driving = Driving::start(&kubeconfig).await;
    let error = eventually("an error that says why", || async {
        let error = driving.driver.list().await.unwrap_err().to_string();
        error.contains("503").then_some(error)
    })
    .await;
    assert!(!error.is_empty());
    drop((down, dry));
    proxy.clear();
    assert_eq!(driving.list().await, []);
    eventually("the template is checked", || async { driving.create("t").await.ok() }).await;
}

/// The template was refused only when the scaler was at work already: it heals when what was missing is there.
#[tokio::test]
async fn a_template_that_is_refused_later_is_tried_again() {
    let plane = ControlPlane::shared().await.unwrap();
    let namespace = plane.namespace("refused-later").await.unwrap();
    let proxy = FaultProxy::start(plane).await.unwrap();
    let kubeconfig = namespace.scaler_kubeconfig(Some(&proxy.url())).await.unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "spec: {priorityClassName: comes-later}").unwrap();
    let down = proxy.add(Rule::all(Fault::Answer(503, None)));
    let options = options(&["--pod-template", file.path().to_str().unwrap()]);
    let driving = Driving::open(&kubeconfig, Leadership::unlimited(), options).await;
    let (class, message) = busy(driving.create("t").await);
    assert_eq!(class, Class::Infrastructure, "{message}");
    down.remove();
    eventually("whoever waits is told of the refusal", || async {
        let (class, message) = busy(driving.create("t").await);
        (class == Class::Config && message.contains("comes-later")).then_some(())
    })
    .await;
    let priority: PriorityClass =
        serde_json::from_value(json!({ "metadata": { "name": "comes-later" }, "value": 1 })).unwrap();
    kube::Api::all(namespace.client()).create(&kube::api::PostParams::default(), &priority).await.unwrap();
    eventually("it is created", || async { driving.create("t").await.ok() }).await;
}

/// No watch is taken up without a pause by a server that ends every one at once.
#[tokio::test]
async fn a_server_that_ends_every_watch_is_not_asked_without_end() {
    let faulty = faulty("restless").await;
    let failing = faulty.proxy.add(Rule::watch_pods(Fault::WatchError(410)));
    faulty.proxy.end_watches();
    failing.reached(3).await;
    let before = faulty.proxy.asked().len();
    tokio::time::sleep(Duration::from_secs(3)).await;
    let asked = faulty.proxy.asked().len() - before;
    assert!(asked < 30, "{asked} requests in 3 s");
}

/// A watch that is silent says nothing about what was created since.
#[tokio::test]
async fn who_was_created_is_not_missed_by_a_silent_watch() {
    let faulty = faulty("silent").await;
    let silent = faulty.proxy.add(Rule::watch_pods(Fault::SilentWatch));
    faulty.proxy.end_watches();
    silent.reached(1).await;
    faulty.driving.create("t").await.unwrap();
    assert_eq!(faulty.driving.list().await[0].key, key("t"));
}

/// One that stood by behind a silent watch does not take its memory for the truth when it begins to lead.
#[tokio::test]
async fn who_begins_to_lead_looks_anew() {
    let plane = ControlPlane::shared().await.unwrap();
    let namespace = plane.namespace("anew").await.unwrap();
    let proxy = FaultProxy::start(plane).await.unwrap();
    let kubeconfig = namespace.scaler_kubeconfig(Some(&proxy.url())).await.unwrap();
    let stop = CancellationToken::new();
    let (cluster, leadership) = (cluster(&kubeconfig).await, Leadership::unlimited());
    let driver = KubernetesDriver::open(cluster, options(&[]), leadership, stop.clone()).await.unwrap();
    eventually("it is known that there is nothing", || async { driver.list().await.ok() }).await;
    let silent = proxy.add(Rule::watch_pods(Fault::SilentWatch));
    proxy.end_watches();
    silent.reached(1).await;
    proxy.clear();
    let leader = Driving::synced(&namespace).await;
    leader.create("t").await.unwrap();
    assert_eq!(driver.list().await.unwrap(), []);

    let (sender, _changes) = mpsc::channel(1);
    driver.watch(sender).unwrap();
    let listed = eventually("a list", || async { driver.list().await.ok() }).await;
    assert_eq!(listed.iter().map(|seen| &seen.key).collect::<Vec<_>>(), [&key("t")]);
    stop.cancel();
}

/// Between two tries of a creation its Pod was shown, and deleted by somebody: it is not made a second time.
#[tokio::test]
async fn what_was_seen_between_two_tries_is_not_made_again() {
    let mut faulty = faulty("between").await;
    // The news comes after the answer was lost, and before the server may be asked again.
    let slow = faulty.proxy.add(Rule::watch_pods(Fault::SlowWatch(Duration::from_millis(500))));
    faulty.proxy.end_watches();
    slow.reached(1).await;
    let _ = faulty.proxy.add(Rule::create_pod(Fault::CutAfter).times(1));
    let _ = faulty.proxy.add(Rule::create_pod(Fault::Answer(429, Some(10))).times(1));
    let creation = faulty.driving.creating("t");
    faulty.driving.told("t", created).await;
    faulty.namespace.let_go(&pod_name("t")).await.unwrap();
    faulty.driving.told("t", |state| *state == State::Gone).await;
    bounded(creation).await.unwrap().unwrap();
    let events = faulty.namespace.audit().unwrap();
    assert_eq!(events.iter().filter(|event| event.is_created_pod()).count(), 1);
}

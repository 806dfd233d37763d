//! Connections: addresses, credentials, lost answers.

use otto_testkit::{PATIENCE, Process};
use redis::AsyncConnectionConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::super::link::{Url, remarks};
use super::*;
use crate::store::tests_of_every_store::record;

#[test]
fn addresses() {
    let url: Url = "redis://user:secret@redis.example:7000/3".parse().unwrap();
    assert_eq!(
        (url.host().as_str(), format!("{url:?}").as_str()),
        ("redis.example:7000", "Url(\"redis.example:7000\")")
    );
    let options = options("rediss://:secret@redis.example");
    assert!(!format!("{options:?}").contains("secret"), "{options:?}");
    assert!(!format!("{:?}", Redis::new(options).unwrap()).contains("secret"));
    assert!("unix:///run/redis.sock".parse::<Url>().unwrap().host().contains("/run/redis.sock"));
    for bad in [
        "",
        "localhost:6379",
        "http://secret@host",
        "redis://",
        "redis://:secret@host/secret",
        "redis://:secret@h:99999",
    ] {
        let error = bad.parse::<Url>().unwrap_err();
        assert!(error.contains("accepted: redis://") && !error.contains("secret"), "{bad}: {error}");
    }
}

#[tokio::test]
async fn a_wrong_password_is_told_without_the_password() {
    let world = World::new().await;
    let _: () = world.run("CONFIG SET requirepass right").await;
    let port = world.server.port();
    let wrong = Redis::new(options(&format!("redis://:wrong-one@127.0.0.1:{port}"))).unwrap();
    let error = wrong.store().ping().await.unwrap_err().to_string();
    assert!(error.contains(&format!("127.0.0.1:{port} (--redis-url)")) && !error.contains("wrong-one"), "{error}");
    assert!(error.to_lowercase().contains("auth") || error.contains("WRONGPASS"), "{error}");

    let right = Redis::new(options(&format!("redis://:right@127.0.0.1:{port}/2"))).unwrap();
    right.store().ping().await.unwrap();
}

/// Nothing that the scaler does needs more than the line of `docs/operations/redis.md`.
#[tokio::test]
async fn the_documented_permissions_are_enough() {
    let page = include_str!("../../../../../../docs/operations/redis.md");
    let user = page.lines().find(|line| line.starts_with("ACL SETUSER otto")).unwrap();
    let world = World::with(|options| options.url = as_user(&options.url.host())).await;
    let _: () = world.run(user).await;
    let leadership = crate::leadership::Leadership::none_yet();
    leadership.extend(crate::leadership::now() + 60_000_000_000);
    let me = super::super::owner::Identity { id: "one".to_owned(), name: "one".to_owned() };
    let leader = world.redis.led_by(me, super::super::owner::Turn { number: 7, leadership });
    let mut reader = world.start_on(leader.clone());
    reader.serving().await;

    let lower = world.add("type scale_down task_id later pod_count 1").await;
    let lost = world.scale_up("lost").await;
    let up = world.add("type scale_up task_id later pod_count 3").await;
    world.settled(up).await;
    assert!(world.task("later").await.last_entry > Some(lost));
    let letters = leader.dead_letters();
    let letter = &letters.list(1, None).await.unwrap()[0];
    assert_eq!(letter.entry, lower);
    world.settled(letters.replay(&letter.id).await.unwrap().unwrap()).await;
    leader.store().load(10).await.unwrap();
    leader.store().expire(now(), 10).await.unwrap();
    let record = leader.store().get("lost").await.unwrap().unwrap();
    leader.store().remove("lost", record.version).await.unwrap();
    world.redis.follower_store().put(&crate::store::tests_of_every_store::record("other", 1), None).await.unwrap();
    let ended = Record { phase: crate::task::Phase::Cancelled, ended_at: Some(now()), ..record };
    leader.store().put(&Record { task_id: "ended".to_owned(), version: 1, ..ended }, None).await.unwrap();
    let event = otto_proto::v1::WorkerEvent::default();
    crate::worker_events::Sink::publish(&leader.worker_events(), &[Arc::new(event)]).await.unwrap();
    reader.stop().await;
    leader.owner().release().await;
    let refused: Vec<redis::Value> = world.run("ACL LOG").await;
    assert!(refused.is_empty(), "{refused:?}");
}

fn as_user(host: &str) -> Url {
    format!("redis://otto:PASSWORD@{host}/0").parse().unwrap()
}

#[test]
fn settings_that_lose_jobs_are_warned_about() {
    assert_eq!(remarks("maxmemory_policy:noeviction\r\naof_enabled:1\r\n"), Vec::<String>::new());
    for policy in ["volatile-ttl", "allkeys-lru"] {
        let said = remarks(&format!("aof_enabled:1\r\nmaxmemory_policy:{policy}\r\n"));
        assert!(said.len() == 1 && said[0].starts_with(&format!("maxmemory-policy is {policy}")), "{said:?}");
    }
    assert_eq!(remarks("aof_enabled:0").len(), 1);
}

/// Carries bytes to Redis and back; when told so, it cuts the connection instead of carrying the next answer back.
struct Proxy {
    url: String,
    cut: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Proxy {
    async fn start(to: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("redis://{}", listener.local_addr().unwrap());
        let cut = Arc::new(AtomicUsize::new(0));
        let cuts = Arc::clone(&cut);
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (client, _) = listener.accept().await.unwrap();
                connections.spawn(carry(client, to, Arc::clone(&cuts)));
            }
        });
        Self { url, cut, task }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn carry(mut client: TcpStream, to: u16, cut: Arc<AtomicUsize>) {
    let mut server = TcpStream::connect(("127.0.0.1", to)).await.unwrap();
    let (mut up, mut down) = (vec![0; 65_536], vec![0; 65_536]);
    loop {
        tokio::select! {
            read = client.read(&mut up) => match read {
                Ok(n) if n > 0 => server.write_all(&up[..n]).await.unwrap(),
                _ => return,
            },
            read = server.read(&mut down) => match read {
                Ok(n) if n > 0 => {
                    if cut.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok() {
                        return;
                    }
                    if client.write_all(&down[..n]).await.is_err() {
                        return;
                    }
                }
                _ => return,
            },
        }
    }
}

#[tokio::test]
async fn a_write_whose_answer_is_lost_is_done_once() {
    let world = World::new().await;
    let proxy = Proxy::start(world.server.port()).await;
    let redis = Redis::new(options(&proxy.url)).unwrap();
    let store = redis.store();
    store.put(&record("t", 1), None).await.unwrap();
    for version in 2..=20 {
        let record = Record { wanted: u32::try_from(version).unwrap(), ..record("t", version) };
        proxy.cut.store(1, Ordering::SeqCst);
        store.put(&record, Some(EntryId { millis: version, sequence: 0 })).await.unwrap();
        assert_eq!(store.get("t").await.unwrap(), Some(record));
        assert_eq!(proxy.cut.load(Ordering::SeqCst), 0);
    }
}

#[tokio::test]
async fn answers_lost_while_reading() {
    let world = World::new().await;
    let proxy = Proxy::start(world.server.port()).await;
    let redis = Redis::new(options(&proxy.url)).unwrap();
    let fake = Fake::new(redis.store());
    let world = World { fake, redis, ..world };
    let mut reader = world.start();
    reader.serving().await;
    let mut entries = Vec::new();
    for n in 0..300 {
        if n % 10 == 5 {
            proxy.cut.store(1, Ordering::SeqCst);
        }
        entries.push(world.add(&format!("type scale_up task_id t{} pod_count {}", n % 30, 1 + n / 30)).await);
        if n % 50 == 7 {
            entries.push(world.add("type scale_up pod_count junk").await);
        }
    }
    world.settled(*entries.last().unwrap()).await;
    for n in 0..30 {
        assert_eq!(world.task(&format!("t{n}")).await.wanted, 10, "t{n}");
    }
    assert_eq!(world.dead().await.len(), 6);
    reader.stop().await;
}

#[tokio::test]
async fn nothing_listens_there() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let redis = Redis::new(options(&format!("redis://:hidden@127.0.0.1:{free}"))).unwrap();
    let error = redis.store().get("t").await.unwrap_err().to_string();
    assert!(error.contains(&format!("127.0.0.1:{free}")) && !error.contains("hidden"), "{error}");
}

/// The default waits half a second for an answer, which a loaded machine may take.
async fn connect(url: String) -> redis::RedisResult<MultiplexedConnection> {
    let config =
        AsyncConnectionConfig::new().set_connection_timeout(Some(PATIENCE)).set_response_timeout(Some(PATIENCE));
    redis::Client::open(url)?.get_multiplexed_async_connection_with_config(&config).await
}

/// A redis-server with settings of its own, and its ports: `{port}` and `{bus}` in `args`, which are free now.
async fn server(dir: &std::path::Path, args: &str, url: impl Fn(u16) -> String) -> (Process, u16, u16) {
    for attempt in 0..20 {
        let free = [(); 2].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
        let [port, bus] = free.map(|listener| listener.local_addr().unwrap().port());
        let program = otto_testkit::program("redis-server").unwrap();
        let args = format!("--dir {} --bind 127.0.0.1 --save \"\" --appendonly yes {args}", dir.display());
        let args = args.replace("{port}", &port.to_string()).replace("{bus}", &bus.to_string());
        let args: Vec<_> = args.split(' ').map(|arg| arg.trim_matches('"')).collect();
        let mut process = Process::start(&program, args, &[], &dir.join(format!("{attempt}.log"))).unwrap();
        let mut connected = false;
        while !connected && process.check_running().is_ok() {
            // Whoever answers with the directory that we gave is ours.
            if let Ok(mut connection) = connect(url(port)).await {
                let mut config = redis::cmd("CONFIG");
                let config: Result<Vec<String>, _> = config.arg("GET").arg("dir").query_async(&mut connection).await;
                match config {
                    Ok(config) if config[1] == dir.display().to_string() => connected = true,
                    Ok(_) => break,
                    Err(_) => {}
                }
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        if connected {
            return (process, port, bus);
        }
    }
    panic!("redis-server did not start in {}", dir.display());
}

/// Two masters; whichever the URL names, each of our keys is found.
#[tokio::test]
async fn a_redis_cluster() {
    let dir = tempfile::tempdir().unwrap();
    let mut nodes = Vec::new();
    for name in ["a", "b"] {
        let home = dir.path().join(name);
        std::fs::create_dir(&home).unwrap();
        let args = "--port {port} --cluster-enabled yes --cluster-port {bus} --cluster-node-timeout 15000";
        let url = |port| format!("redis://127.0.0.1:{port}");
        let (process, port, bus) = server(&home, args, url).await;
        nodes.push((process, port, bus, connect(url(port)).await.unwrap()));
    }
    let cluster = async |node: usize, line: String| -> redis::Value {
        let mut command = redis::cmd("CLUSTER");
        for word in line.split(' ') {
            command.arg(word);
        }
        command.query_async(&mut nodes[node].3.clone()).await.unwrap()
    };
    // The stream, the dead letters and the worker events are not all on one side of this.
    cluster(0, "ADDSLOTSRANGE 0 8191".to_owned()).await;
    cluster(1, "ADDSLOTSRANGE 8192 16383".to_owned()).await;
    cluster(0, format!("MEET 127.0.0.1 {} {}", nodes[1].1, nodes[1].2)).await;
    for node in 0..2 {
        eventually("the cluster is whole", async || {
            let info = format!("{:?}", cluster(node, "INFO".to_owned()).await);
            (info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:2")).then_some(())
        })
        .await;
    }
    let slot = async |key: &str| match cluster(0, format!("KEYSLOT {key}")).await {
        redis::Value::Int(slot) => usize::from(slot >= 8192),
        other => panic!("{other:?}"),
    };
    let events = slot(STREAM).await;
    let sides = [events, slot("otto:scale:events:dead").await, slot("otto:worker:events").await];
    assert!(sides.contains(&0) && sides.contains(&1), "{sides:?}");

    for (n, (_, port, _, _)) in nodes.iter().enumerate() {
        let redis = Redis::new(options(&format!("redis://127.0.0.1:{port}"))).unwrap();
        let fake = Fake::new(redis.store());
        let inbox = redis.inbox(Arc::new(FakeTarget(Arc::clone(&fake))), Metrics::default());
        let (stop, health) = (CancellationToken::new(), inbox.health());
        let mut reader = Reader { task: tokio::spawn(inbox.run(stop.clone())), stop, health };
        reader.serving().await;
        for (task, count) in [("good", "2"), ("bad", "junk")] {
            let mut add = redis::cmd("XADD");
            add.arg(STREAM).arg("*").arg("type").arg("scale_up").arg("task_id").arg(format!("{task}-{n}"));
            add.arg("pod_count").arg(count);
            add.query_async::<()>(&mut nodes[events].3.clone()).await.unwrap();
        }
        let letters = redis.dead_letters();
        let letter = eventually("the bad one is put aside", async || {
            letters
                .list(10, None)
                .await
                .unwrap()
                .into_iter()
                .find(|letter| letter.fields["task_id"] == format!("bad-{n}"))
        })
        .await;
        let record =
            eventually("the good one is applied", async || redis.store().get(&format!("good-{n}")).await.unwrap())
                .await;
        assert_eq!(record.wanted, 2);
        letters.replay(&letter.id).await.unwrap().unwrap();
        let event = otto_proto::v1::WorkerEvent { event_id: format!("e{n}"), ..Default::default() };
        crate::worker_events::Sink::publish(&redis.worker_events(), &[Arc::new(event)]).await.unwrap();
        assert_eq!(redis.store().load(10).await.unwrap().len(), n + 1);
        reader.stop().await;
    }
}

#[tokio::test]
async fn tls() {
    let dir = tempfile::tempdir().unwrap();
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let mut ca = rcgen::CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_pem = ca.self_signed(&ca_key).unwrap().pem();
    let issuer = rcgen::Issuer::new(ca, ca_key);
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let certificate = certificate.signed_by(&key, &issuer).unwrap();
    for (name, pem) in [("ca.pem", &ca_pem), ("cert.pem", &certificate.pem()), ("key.pem", &key.serialize_pem())] {
        std::fs::write(dir.path().join(name), pem).unwrap();
    }
    let at = |name: &str| dir.path().join(name).display().to_string();
    let socket = at("redis.sock");
    let args = format!(
        "--port 0 --tls-port {{port}} --unixsocket {socket} --tls-auth-clients no --tls-ca-cert-file {} --tls-cert-file {} \
         --tls-key-file {}",
        at("ca.pem"),
        at("cert.pem"),
        at("key.pem")
    );
    let (_process, port, _) = server(dir.path(), &args, |_| format!("unix://{socket}")).await;

    let mut trusting = options(&format!("rediss://localhost:{port}"));
    trusting.ca = Some(ca_pem.into_bytes());
    let redis = Redis::new(trusting.clone()).unwrap();
    redis.store().put(&record("t", 1), None).await.unwrap();
    assert_eq!(redis.store().load(10).await.unwrap().len(), 1);

    // Who trusts the public authorities only does not trust this server, and a wrong name is noticed.
    let strange = Redis::new(options(&format!("rediss://localhost:{port}"))).unwrap();
    let error = strange.store().ping().await.unwrap_err().to_string();
    assert!(error.contains("certificate") || error.contains("UnknownIssuer"), "{error}");
    trusting.url = format!("rediss://127.0.0.1:{port}").parse().unwrap();
    let error = Redis::new(trusting).unwrap().store().ping().await.unwrap_err().to_string();
    assert!(error.contains("certificate") || error.contains("NotValidForName"), "{error}");

    let unix = Redis::new(options(&format!("unix://{socket}"))).unwrap();
    assert_eq!(unix.store().load(10).await.unwrap().len(), 1);
}

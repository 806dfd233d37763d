//! Connections: addresses, credentials, lost answers.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

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
    assert!(matches!(&*wrong.health().borrow(), Health::NotServing(why) if why.contains("--redis-url")));

    let right = Redis::new(options(&format!("redis://:right@127.0.0.1:{port}/2"))).unwrap();
    right.store().ping().await.unwrap();
    assert_eq!(*right.health().borrow(), Health::Serving);
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
    let started = Instant::now();
    let error = redis.store().get("t").await.unwrap_err().to_string();
    assert!(error.contains(&format!("127.0.0.1:{free}")) && !error.contains("hidden"), "{error}");
    assert!(started.elapsed() < Duration::from_secs(5));
}

//! The page in a real browser.

use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use fantoccini::elements::Element;
use fantoccini::key::Key;
use fantoccini::wd::WebDriverCompatibleCommand;
use fantoccini::{Client, ClientBuilder, Locator};
use hyper_util::client::legacy::connect::HttpConnector;
use otto_proto::v1::worker_event::Type;
use otto_proto::v1::{FailureClass, LogSource, WorkerEvent};
use otto_testkit::{eventually, program};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::http_support::{Server, Worker, at, event, within};

/// chromedriver and the chromium it started. Both end with it, also when a test fails.
struct Browser {
    driver: Child,
    profile: TempDir,
    client: Client,
}

impl Browser {
    async fn start() -> Self {
        let chromedriver = program("chromedriver").unwrap();
        program("chromium").or_else(|_| program("google-chrome")).expect("the tests of the page need chromium");
        // It says on its standard output which port it chose. A group of its own, so that Ctrl-C in a terminal does not
        // end it before its browser.
        let mut driver = Command::new(chromedriver)
            .arg("--port=0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap();
        let mut output = BufReader::new(driver.stdout.take().unwrap()).lines();
        let port = output
            .find_map(|line| {
                let line = line.unwrap();
                let (_, port) = line.split_once("started successfully on port ")?;
                Some(port.trim_end_matches('.').to_owned())
            })
            .expect("chromedriver did not start");
        let profile = tempfile::tempdir().unwrap();
        let arguments = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--no-proxy-server",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--window-size=1200,800",
            &format!("--user-data-dir={}", profile.path().display()),
        ];
        let capabilities =
            json!({ "goog:chromeOptions": { "args": arguments }, "goog:loggingPrefs": { "browser": "ALL" } });
        let Value::Object(capabilities) = capabilities else { unreachable!() };
        let mut builder = ClientBuilder::new(HttpConnector::new());
        builder.capabilities(capabilities);
        let url = format!("http://127.0.0.1:{port}");
        let client = within(Duration::from_secs(60), "a browser", builder.connect(&url)).await.unwrap();
        Self { driver, profile, client }
    }

    async fn close(self) {
        self.client.clone().close().await.unwrap();
    }

    async fn goto(&self, url: &str) {
        self.client.goto(url).await.unwrap();
    }

    async fn run(&self, script: &str) -> Value {
        self.client.execute(script, Vec::new()).await.unwrap()
    }

    /// Waits until an expression is true.
    async fn until(&self, what: &str, expression: &str) {
        let script = format!("return Boolean({expression})");
        eventually(what, async || (self.run(&script).await == true).then_some(())).await;
    }

    async fn find(&self, selector: &str) -> Element {
        let found = self.client.wait().at_most(Duration::from_secs(30)).for_element(Locator::Css(selector));
        found.await.unwrap_or_else(|error| panic!("{selector}: {error}"))
    }

    /// Waits until a row has exactly this text.
    async fn row(&self, text: &str) {
        let text = Value::from(text);
        self.until(
            &format!("a row with {text}"),
            &format!("[...document.querySelectorAll('.rows .msg')].some((row) => row.textContent === {text})"),
        )
        .await;
    }

    /// Presses a key in the log.
    async fn press(&self, key: &str) {
        let viewport = self.find(".viewport").await;
        viewport.send_keys(key).await.unwrap();
    }

    /// What the page complained about, network errors left out.
    async fn complaints(&self) -> Vec<String> {
        let log = self.client.issue_cmd(ReadLog).await.unwrap();
        let entries = log.as_array().cloned().unwrap_or_default();
        entries
            .iter()
            .filter(|entry| entry["level"] == "SEVERE" && entry["source"] != "network")
            .map(|entry| entry["message"].to_string())
            .collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // "HOST-PID" of the browser, while it runs.
        let lock: Option<PathBuf> = std::fs::read_link(self.profile.path().join("SingletonLock")).ok();
        let pid = lock.and_then(|lock| lock.to_str()?.rsplit_once('-')?.1.parse().ok()).and_then(Pid::from_raw);
        if let Some(pid) = pid {
            let _ = kill_process(pid, Signal::KILL);
        }
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

/// chromedriver's own command for the browser's console.
#[derive(Debug)]
struct ReadLog;

impl WebDriverCompatibleCommand for ReadLog {
    fn endpoint(&self, base: &url::Url, session: Option<&str>) -> Result<url::Url, url::ParseError> {
        base.join(&format!("session/{}/se/log", session.unwrap_or_default()))
    }

    fn method_and_body(&self, _: &url::Url) -> (http::Method, Option<String>) {
        (http::Method::POST, Some(json!({ "type": "browser" }).to_string()))
    }
}

const EVIL: &str = "<script>window.pwned=1</script><img src=x onerror=\"window.pwned=2\"><b>bold</b>";
const MILLION: u64 = 1_000_000;

#[tokio::test]
async fn a_user_reads_logs() {
    let mut server = Server::start(&[]).await;
    let mut live = Worker::connect(&server, "ci/<b>build</b>", "w0").await;
    live.print([(format!("{EVIL}\n"), at(0)), ("\x1b[1;31mred\x1b[0m plain\n".to_owned(), at(1))]).await;
    let mut stuck = event("stuck", "w", Type::Waiting, "image x cannot be pulled: not found");
    stuck.failure_class = FailureClass::Image.into();
    server.report(vec![stuck]).await;

    let browser = Browser::start().await;
    tasks_are_listed(&server, &browser).await;
    output_is_only_text(&browser).await;
    lines_appear_and_are_filtered(&browser, &mut live).await;
    a_lost_connection_is_shown_and_comes_back(&mut server, &browser, live).await;
    assert_eq!(browser.complaints().await, Vec::<String>::new());
    browser.close().await;
}

async fn tasks_are_listed(server: &Server, browser: &Browser) {
    browser.goto(&server.program.http_url()).await;
    browser.until("both tasks", "document.querySelectorAll('tbody tr').length === 2").await;
    let text = browser.find("tbody").await.text().await.unwrap();
    assert!(text.contains("ci/<b>build</b>") && text.contains("running") && text.contains("stuck"), "{text}");
    // A new task appears by itself.
    server.report(vec![event("later", "w", Type::Created, "")]).await;
    browser.until("the new task", "document.querySelectorAll('tbody tr').length === 3").await;
    // Where there is no log, the page says why.
    browser.client.find(Locator::LinkText("stuck")).await.unwrap().click().await.unwrap();
    let why = browser.find(".why").await.text().await.unwrap();
    assert!(why.contains("Cannot start yet (image): image x cannot be pulled: not found"), "{why}");
    let workers = browser.find("ul.workers").await.text().await.unwrap();
    assert!(workers.contains("no log yet: waiting (image): image x cannot be pulled: not found"), "{workers}");
    browser.client.back().await.unwrap();
    browser.find("tbody").await;
    browser.client.find(Locator::LinkText("ci/<b>build</b>")).await.unwrap().click().await.unwrap();
}

async fn output_is_only_text(browser: &Browser) {
    browser.row(EVIL).await;
    let made = browser.run("return document.querySelectorAll('.rows script, .rows img, .rows b, h1 b').length").await;
    assert_eq!(made, 0);
    assert_eq!(browser.run("return window.pwned ?? null").await, Value::Null);
    // Even with a hole in the page's own scripts nothing could be put in as HTML.
    let refused = browser
        .run("try { document.querySelector('.rows').innerHTML = '<i>x</i>'; return 'taken' } catch (e) { return e.name }")
        .await;
    assert_eq!(refused, "TypeError");
    let complaints = browser.complaints().await;
    assert!(complaints.len() == 1 && complaints[0].contains("TrustedHTML"), "{complaints:?}");
    browser.row("red plain").await;
    let red = browser.find(".rows .msg span.f1.bold").await;
    assert_eq!(red.text().await.unwrap(), "red");
}

async fn lines_appear_and_are_filtered(browser: &Browser, live: &mut Worker) {
    live.print((0..500).map(|n| (format!("step {n}\n"), at(n)))).await;
    browser.row("step 499").await;
    assert_eq!(browser.run("return document.querySelector('.follow').getAttribute('aria-pressed')").await, "true");
    // Who scrolls up is left alone.
    browser.press(Key::PageUp.to_string().as_str()).await;
    browser
        .until("following stopped", "document.querySelector('.follow').getAttribute('aria-pressed') === 'false'")
        .await;
    live.print([("unseen\n", at(600))]).await;
    browser.until("the line is counted", "document.querySelector('.place').textContent.endsWith(' of 503')").await;
    assert_eq!(
        browser
            .run("return [...document.querySelectorAll('.rows .msg')].some((r) => r.textContent === 'unseen')")
            .await,
        false
    );
    browser.press("f").await;
    browser.row("unseen").await;

    let query = browser.find("input.query").await;
    query.send_keys("STEP 49").await.unwrap();
    browser.until("matches only", "document.querySelectorAll('.rows .row').length === 11").await;
    assert_eq!(browser.run("return document.querySelectorAll('.rows mark').length").await, 11);
    assert!(browser.client.current_url().await.unwrap().query().unwrap().contains("q=STEP+49"));
    // What comes is filtered too.
    live.print([("other\n", at(700)), ("step 490 again\n", at(701))]).await;
    browser.row("step 490 again").await;
    assert_eq!(browser.run("return document.querySelectorAll('.rows .row').length").await, 12);
    browser.find("button.regex").await.click().await.unwrap();
    query.send_keys("(").await.unwrap();
    browser.until("the error", "document.querySelector('.field-error').textContent.includes('regex')").await;
    query.send_keys(&format!("{}[13]$", char::from(Key::Backspace))).await.unwrap();
    browser.until("two lines", "document.querySelectorAll('.rows .row').length === 2").await;
    query.send_keys(&char::from(Key::Escape).to_string()).await.unwrap();
    browser.row("step 490 again").await;
    browser.row("other").await;

    let stderr = otto_proto::block::Attributes { source: LogSource::Stderr, ..at(800) };
    live.print([("to stderr\n", stderr)]).await;
    browser.row("to stderr").await;
    assert_eq!(browser.find(".row.stderr .src").await.text().await.unwrap(), "err");
}

async fn a_lost_connection_is_shown_and_comes_back(server: &mut Server, browser: &Browser, live: Worker) {
    server.program.process.kill().await.unwrap();
    drop(live);
    browser.until("the loss is shown", "document.querySelector('.conn').textContent.includes('lost')").await;
    server.program.restart().await.unwrap();
    let mut live = Worker::connect(server, "ci/<b>build</b>", "w0").await;
    live.print([("back again\n", at(900))]).await;
    browser.row("back again").await;
    browser.until("the loss is over", "document.querySelector('.conn').textContent === ''").await;
    let numbers =
        browser.run("return [...document.querySelectorAll('.rows a.ln')].map((n) => Number(n.textContent))").await;
    let numbers: Vec<u64> = serde_json::from_value(numbers).unwrap();
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "{numbers:?}");
    let last = *numbers.last().unwrap();
    live.finish(0).await;
    let ended = WorkerEvent { task_state: "succeeded".into(), ..event("ci/<b>build</b>", "", Type::TaskEnded, "") };
    server.report(vec![ended]).await;
    browser
        .until(
            "it is complete",
            &format!("document.querySelector('.summary').textContent === 'complete, {last} of {last} lines'"),
        )
        .await;
    browser.until("the task's end", "document.querySelector('.task-state').textContent.includes('succeeded')").await;
}

#[tokio::test]
async fn a_million_lines_are_scrolled_with_few_nodes() {
    let server = Server::start(&[]).await;
    let mut worker = Worker::connect(&server, "big", "w").await;
    while worker.next < MILLION {
        let first = worker.next;
        worker.send((first..first + 20_000).map(|n| (format!("line {n}\n"), at(n as i64)))).await;
        worker.flushed().await;
    }
    worker.finish(0).await;
    let browser = Browser::start().await;
    browser.goto(&format!("{}/?task=big", server.program.http_url())).await;
    browser.row("line 1").await;
    let mut most = 0;
    for percent in [1, 10, 33, 50, 75, 99] {
        let script = format!(
            "const v = document.querySelector('.viewport'); v.scrollTop = (v.scrollHeight - v.clientHeight) * {percent} / 100"
        );
        browser.run(&script).await;
        let about = MILLION * percent / 100;
        browser
            .until(
                &format!("lines at {percent} %"),
                &format!("[...document.querySelectorAll('.rows .msg')].some((row) => Math.abs(Number(row.textContent.slice(5)) - {about}) < 2000)"),
            )
            .await;
        most = most.max(browser.run("return document.querySelectorAll('*').length").await.as_u64().unwrap());
    }
    // Small movements, as by a wheel: line by line, none left out.
    for _ in 0..30 {
        browser.run("document.querySelector('.viewport').scrollTop -= 300; return new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))").await;
    }
    browser.until("lines there", "!document.querySelector('.rows .blank')").await;
    let shown =
        browser.run("return [...document.querySelectorAll('.rows a.ln')].map((n) => Number(n.textContent))").await;
    let shown: Vec<u64> = serde_json::from_value(shown).unwrap();
    assert!(shown.windows(2).all(|pair| pair[1] == pair[0] + 1), "{shown:?}");
    assert!(shown[0] > 985_000 && shown[0] < 990_000, "{shown:?}");

    browser.press(&char::from(Key::End).to_string()).await;
    browser.row("line 1000000").await;
    browser.press(&char::from(Key::Home).to_string()).await;
    browser.row("line 1").await;
    browser.goto(&format!("{}/?task=big&worker=w#L654321", server.program.http_url())).await;
    let target = browser.find(".rows .target .msg").await;
    assert_eq!(target.text().await.unwrap(), "line 654321");
    browser.press("w").await;
    browser.row("line 654321").await;
    browser.press(&char::from(Key::End).to_string()).await;
    browser.row("line 1000000").await;
    let query = browser.find("input.query").await;
    query.send_keys("line 99999").await.unwrap();
    browser.until("the matches", "document.querySelectorAll('.rows .row').length === 11").await;
    most = most.max(browser.run("return document.querySelectorAll('*').length").await.as_u64().unwrap());
    assert!(most < 1000, "{most} nodes");
    assert_eq!(browser.complaints().await, Vec::<String>::new());
    browser.close().await;
}

#[tokio::test]
async fn the_page_asks_for_the_token() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    std::fs::write(&file, "s3cret\n").unwrap();
    let server = Server::start(&["--auth-token-file", file.to_str().unwrap()]).await;
    let browser = Browser::start().await;
    browser.goto(&server.program.http_url()).await;
    let input = browser.find("#token-dialog[open] #token-input").await;
    input.send_keys("wrong\n").await.unwrap();
    browser.until("asked again", "document.querySelector('#token-dialog').open && document.querySelector('#token-why').textContent.includes('not accept')").await;
    let input = browser.find("#token-dialog[open] #token-input").await;
    input.send_keys("s3cret\n").await.unwrap();
    browser.until("let in", "document.querySelector('.empty')?.textContent.includes('No logs yet')").await;
    assert_eq!(
        browser.run("return [sessionStorage.length, localStorage.length, document.cookie]").await,
        json!([1, 0, ""])
    );
    browser.close().await;
}

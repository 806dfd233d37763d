//! The page: files of `web/`, compiled in.

use axum::Router;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use xxhash_rust::xxh3::xxh3_64;

/// Only what this server sends may run or be shown, nothing inline, nothing that parses text as HTML, in no frame.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      form-action 'none'; base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; \
                      trusted-types 'none'";

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

macro_rules! asset {
    ($path:literal, $file:literal, $kind:expr) => {
        ($path, $kind, include_bytes!(concat!("../../../../web/", $file)) as &'static [u8])
    };
}

const ASSETS: &[(&str, &str, &[u8])] = &[
    asset!("/", "index.html", HTML),
    asset!("/assets/style.css", "style.css", "text/css; charset=utf-8"),
    asset!("/assets/favicon.svg", "favicon.svg", "image/svg+xml"),
    asset!("/assets/ansi.js", "js/ansi.js", SCRIPT),
    asset!("/assets/api.js", "js/api.js", SCRIPT),
    asset!("/assets/dom.js", "js/dom.js", SCRIPT),
    asset!("/assets/format.js", "js/format.js", SCRIPT),
    asset!("/assets/indexed.js", "js/indexed.js", SCRIPT),
    asset!("/assets/listed.js", "js/listed.js", SCRIPT),
    asset!("/assets/logview.js", "js/logview.js", SCRIPT),
    asset!("/assets/main.js", "js/main.js", SCRIPT),
    asset!("/assets/poll.js", "js/poll.js", SCRIPT),
    asset!("/assets/row.js", "js/row.js", SCRIPT),
    asset!("/assets/scroller.js", "js/scroller.js", SCRIPT),
    asset!("/assets/task.js", "js/task.js", SCRIPT),
    asset!("/assets/tasks.js", "js/tasks.js", SCRIPT),
];

/// Routes of the page. They need no token: they hold nothing of anybody.
pub(super) fn routes() -> Router {
    let mut router = Router::new();
    for &(path, kind, bytes) in ASSETS {
        let tag = format!("\"{:016x}\"", xxh3_64(bytes));
        router = router.route(path, get(async move |headers: HeaderMap| serve(&headers, kind, bytes, &tag)));
    }
    router
}

// The browser asks every time and is told "not modified": after an upgrade no old script meets a new one.
fn serve(asked: &HeaderMap, kind: &'static str, bytes: &'static [u8], tag: &str) -> Response {
    let known = asked.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    let known = known.flat_map(|value| value.split(',')).any(|value| value.trim().trim_start_matches("W/") == tag);
    let mut response = if known {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        axum::body::Bytes::from_static(bytes).into_response()
    };
    let headers = response.headers_mut();
    if let Ok(tag) = HeaderValue::from_str(tag) {
        headers.insert(header::ETAG, tag);
    }
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    response
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    #[test]
    fn every_file_of_web_is_served_and_every_reference_resolves() {
        let web = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../web");
        let names = |dir: &Path| -> BTreeSet<String> {
            let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
            entries.filter(|e| e.path().is_file()).map(|e| e.file_name().into_string().unwrap()).collect()
        };
        let mut files = names(&web);
        files.extend(names(&web.join("js")));
        assert_eq!(files.len(), ASSETS.len(), "web/ has {files:?}");
        let paths: BTreeSet<&str> = ASSETS.iter().map(|asset| asset.0).collect();
        for (path, _, bytes) in ASSETS {
            let text = std::str::from_utf8(bytes).unwrap();
            for part in text.split(['"', '\'']).filter(|part| part.starts_with("/assets/") || part.starts_with("./")) {
                let wanted = part.replacen("./", "/assets/", 1);
                assert!(paths.contains(wanted.as_str()), "{path} refers to {part}");
            }
        }
    }

    #[test]
    fn nothing_on_the_page_parses_text_as_html_or_is_inline() {
        for (path, _, bytes) in ASSETS {
            let text = std::str::from_utf8(bytes).unwrap();
            for banned in [
                "innerHTML",
                "outerHTML",
                "insertAdjacentHTML",
                "document.write",
                "eval(",
                "new Function",
                "style=\"",
                "onclick=\"",
            ] {
                assert!(!text.contains(banned), "{path} contains {banned}");
            }
        }
    }
}

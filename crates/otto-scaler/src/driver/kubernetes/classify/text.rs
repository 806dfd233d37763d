//! Sentences of others, made fit for people: without wrappers that say nothing, and the same for the same trouble.

use std::borrow::Cow;

/// Longest text taken over, in bytes.
const LONGEST: usize = 1_000;

/// Put before a message by those who passed it on.
const WRAPPERS: &[&str] = &[
    "ErrImagePull: ",
    "Error: ",
    "error: ",
    "failed to create containerd task: ",
    "failed to create containerd container: ",
    "failed to create shim task: ",
    "OCI runtime create failed: ",
    "runc create failed: ",
    "runc did not terminate successfully: ",
    "unable to start container process: ",
    "error during container init: ",
    "failed to generate container spec: ",
    "failed to generate spec: ",
    "failed to copy: ",
    "failed to do request: ",
    "PodGC: ",
    "Failed to create pod sandbox: ",
];

/// The same, with the name of the image or container in quotes after it.
const NAMING_WRAPPERS: &[&str] = &[
    "Back-off pulling image ",
    "Failed to pull image ",
    "failed to pull and unpack image ",
    "failed to resolve reference ",
    "failed to resolve image ",
    "failed to generate container ",
    "Failed to apply default image tag ",
    "couldn't parse image name ",
];

/// `what: why`, or `what` alone.
pub(super) fn with(what: &str, why: &str) -> String {
    let why = steady(why);
    if why.is_empty() { what.to_owned() } else { format!("{what}: {why}") }
}

/// One line as it came, not too long.
pub(super) fn line(text: &str) -> String {
    bounded(text.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// One line, without wrappers, without what changes from one try to the next, not too long.
pub(super) fn steady(text: &str) -> String {
    let words: Vec<_> = unwrapped(text).split_whitespace().filter_map(word).collect();
    bounded(words.join(" "))
}

fn bounded(mut text: String) -> String {
    if text.len() > LONGEST {
        text.truncate(text.floor_char_boundary(LONGEST));
        text.push('…');
    }
    text.truncate(text.trim_end_matches(['.', ' ']).len());
    text
}

fn unwrapped(text: &str) -> &str {
    let mut text = text.trim();
    // The code of a runtime's error that has none.
    text = text.strip_suffix(": unknown").unwrap_or(text);
    loop {
        let before = text;
        for wrapper in WRAPPERS {
            text = text.strip_prefix(wrapper).unwrap_or(text);
        }
        if let Some(rest) = text.strip_prefix("rpc error: code = ")
            && let Some((_, rest)) = rest.split_once(" desc = ")
        {
            text = rest;
        }
        if let Some(rest) = text.strip_prefix("mount callback failed on ")
            && let Some((_, rest)) = rest.split_once(": ")
        {
            text = rest;
        }
        for wrapper in NAMING_WRAPPERS {
            // The last one may have nothing after it, and is kept then.
            if let Some(rest) = text.strip_prefix(wrapper)
                && let Some((_, rest)) = rest.strip_prefix('"').and_then(|rest| rest.split_once("\": "))
            {
                text = rest;
            }
        }
        if text == before {
            return text;
        }
    }
}

/// A word without a URL's query (signatures, tokens), the port that a connection happened to come from, or the number of
/// something that is new with every try.
fn word(word: &str) -> Option<Cow<'_, str>> {
    if let Some(number) = long_number(word) {
        return Some(word.replace(number, "…").into());
    }
    if let Some((_, to)) = word.split_once("->")
        && word.starts_with(|first: char| first.is_ascii_digit() || first == '[')
    {
        return Some(to.into());
    }
    match word.split_once('?') {
        Some((address, query)) if address.contains("://") => {
            // What follows the URL in the same word: a quote, a colon.
            let end = query.find(['"', '\'', ')', '>']).map_or("", |end| &query[end..]);
            Some(format!("{address}{end}").into())
        }
        _ => Some(word.into()),
    }
}

/// 32 hexadecimal digits or more: of a sandbox, a container, a layer.
fn long_number(word: &str) -> Option<&str> {
    word.split(|letter: char| !letter.is_ascii_hexdigit()).find(|part| part.len() >= 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_trouble_reads_the_same() {
        let first = r#"rpc error: code = NotFound desc = failed to pull and unpack image "docker.io/acme/x:1": failed to resolve reference "docker.io/acme/x:1": docker.io/acme/x:1: not found"#;
        let later = format!(r#"Back-off pulling image "acme/x:1": ErrImagePull: {first}"#);
        assert_eq!(steady(first), "docker.io/acme/x:1: not found");
        assert_eq!(steady(&later), steady(first));
        assert_eq!(
            steady("dial tcp: lookup r.example on 10.0.0.10:53: read udp 10.1.0.5:40123->10.0.0.10:53: i/o timeout"),
            "dial tcp: lookup r.example on 10.0.0.10:53: read udp 10.0.0.10:53: i/o timeout"
        );
        assert_eq!(
            steady("Get \"https://s3.example/layer?X-Amz-Signature=abc&X=1\": EOF"),
            "Get \"https://s3.example/layer\": EOF"
        );
        let sandbox = |id: &str| format!("failed to setup network for sandbox \"{}\": no IP", id.repeat(16));
        assert_eq!(steady(&sandbox("0a1b")), steady(&sandbox("c3d4")));
        assert_eq!(steady("Back-off pulling image \"acme/x:1\""), "Back-off pulling image \"acme/x:1\"");
    }

    #[test]
    fn whatever_comes_is_one_bounded_line() {
        assert_eq!(steady(" a\n\tb.\n"), "a b");
        let long = "ü ".repeat(2_000);
        assert!(steady(&long).len() <= LONGEST + '…'.len_utf8());
        assert_eq!(with("what", " \n"), "what");
    }
}

//! Names of container images, before any node tries to pull one.
//!
//! The grammar is that of the distribution project, which containerd, CRI-O and the kubelet go by:
//! <https://github.com/distribution/reference/blob/main/reference.go>. The API server checks none of it; a Pod with a name
//! that cannot be waits for ever with `InvalidImageName`.

/// Longest repository name with its registry (`RepositoryNameTotalLengthMax`).
const LONGEST_NAME: usize = 255;
/// Longest tag.
const LONGEST_TAG: usize = 128;
/// What is accepted, for messages.
pub(crate) const ACCEPTED: &str =
    "[REGISTRY[:PORT]/]REPOSITORY[:TAG][@DIGEST], such as debian:12 or ghcr.io/acme/build:1.4";

/// Whether this can be the name of an image.
///
/// # Errors
/// What is wrong with which part of it.
pub(crate) fn check(image: &str) -> Result<(), String> {
    if image.is_empty() {
        return Err("is empty".to_owned());
    }
    if let Some(odd) = image.chars().find(|c| c.is_whitespace() || c.is_control()) {
        return Err(format!("holds {odd:?}"));
    }
    if let Some((scheme, _)) = image.split_once("://") {
        return Err(format!("is a URL (`{scheme}://` does not belong to it)"));
    }
    let (named, digest) = match image.split_once('@') {
        Some((named, digest)) => (named, Some(digest)),
        None => (image, None),
    };
    // The last colon is a tag's unless a slash follows it: then it is a port's.
    let (name, tag) = match named.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (named, None),
    };
    check_name(name)?;
    tag.map_or(Ok(()), check_tag)?;
    digest.map_or(Ok(()), check_digest)
}

fn check_name(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("has no repository".to_owned());
    }
    let (registry, path) = match name.split_once('/') {
        Some((first, rest)) if is_registry(first) => (Some(first), rest),
        _ => (None, name),
    };
    if let Some(registry) = registry {
        check_registry(registry)?;
    } else if path.len() == 64 && path.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return Err("is the id of an image, which no registry knows".to_owned());
    }
    if path.is_empty() {
        return Err("has a registry but no repository".to_owned());
    }
    // What has no registry is Docker Hub's, and one name there is in `library/`.
    let implied = match (registry, path.contains('/')) {
        (Some(_), _) => 0,
        (None, true) => "docker.io/".len(),
        (None, false) => "docker.io/library/".len(),
    };
    if name.len() + implied > LONGEST_NAME {
        return Err(format!("has a name of {} bytes; at most {LONGEST_NAME} are possible", name.len() + implied));
    }
    path.split('/').try_for_each(check_component)
}

/// Whether what stands before the first slash is a registry (`splitDockerDomain`).
fn is_registry(first: &str) -> bool {
    first.contains(['.', ':']) || first == "localhost" || first.chars().any(|c| c.is_ascii_uppercase())
}

fn check_registry(registry: &str) -> Result<(), String> {
    let bad = |what: &str| Err(format!("has the registry `{registry}`, {what}"));
    let (host, port) = if let Some(rest) = registry.strip_prefix('[') {
        let Some((address, after)) = rest.split_once(']') else { return bad("whose `[` is not closed") };
        if address.is_empty() || !address.bytes().all(|b| b.is_ascii_hexdigit() || b == b':') {
            return bad("which is no IPv6 address");
        }
        match after.strip_prefix(':') {
            Some(port) => (None, Some(port)),
            None if after.is_empty() => (None, None),
            None => return bad("which goes on after `]`"),
        }
    } else {
        match registry.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(registry), None),
        }
    };
    if port.is_some_and(|port| port.is_empty() || !port.bytes().all(|b| b.is_ascii_digit())) {
        return bad("whose port is not a number");
    }
    let label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    match host {
        Some(host) if !host.split('.').all(label) => bad("which is no host name"),
        _ => Ok(()),
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn check_component(component: &str) -> Result<(), String> {
    let bad = |what: &str| Err(format!("has `{component}` in its name, {what}"));
    if component.is_empty() {
        return Err("has nothing between two slashes, or at its end".to_owned());
    }
    if component.bytes().any(|b| b.is_ascii_uppercase()) {
        return bad("but a repository's name is in lower case");
    }
    if let Some(odd) = component.chars().find(|c| !matches!(c, 'a'..='z' | '0'..='9' | '.' | '_' | '-')) {
        return Err(format!("has {odd:?} in its name"));
    }
    let separator = |c: char| matches!(c, '.' | '_' | '-');
    if component.starts_with(separator) || component.ends_with(separator) {
        return bad("which begins or ends with a separator");
    }
    // What stands between letters: one dot, one or two underscores, or any number of hyphens.
    let separated = |run: &str| matches!(run, "." | "_" | "__") || run.bytes().all(|b| b == b'-');
    let runs = component.split(|c: char| !separator(c)).filter(|run| !run.is_empty());
    match runs.into_iter().find(|run| !separated(run)) {
        Some(run) => bad(&format!("where `{run}` separates nothing")),
        None => Ok(()),
    }
}

/// `[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}`
fn check_tag(tag: &str) -> Result<(), String> {
    if tag.is_empty() {
        return Err("has an empty tag".to_owned());
    }
    if tag.len() > LONGEST_TAG {
        return Err(format!("has a tag of {} bytes; at most {LONGEST_TAG} are possible", tag.len()));
    }
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    if !word(tag.as_bytes()[0]) || !tag.bytes().all(|b| word(b) || b == b'.' || b == b'-') {
        return Err(format!(
            "has the tag `{tag}`; a tag is letters, digits, `_`, `.` and `-`, the first no `.` or `-`"
        ));
    }
    Ok(())
}

/// `ALGORITHM:HEX`, as long as the algorithm says.
fn check_digest(digest: &str) -> Result<(), String> {
    let length = match digest.split_once(':') {
        Some(("sha256", _)) => 64,
        Some(("sha384", _)) => 96,
        Some(("sha512", _)) => 128,
        _ => return Err(format!("has the digest `{digest}`; a digest is sha256:, sha384: or sha512: and hex digits")),
    };
    let hex = &digest["sha256:".len()..];
    if hex.len() != length || !hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        let algorithm = &digest[.."sha256".len()];
        return Err(format!("has a digest that is not {length} hex digits in lower case after `{algorithm}:`"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SHA: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn what_registries_have() {
        let digest = format!("debian@sha256:{SHA}");
        let both = format!("ghcr.io/a/b:1@sha256:{SHA}");
        let longest = format!("localhost/{}", "a".repeat(245));
        for image in [
            "debian",
            "debian:12",
            "library/debian:12-slim",
            "localhost/x",
            "localhost:5000/x:y",
            "127.0.0.1:5000/a/b/c:v1.0_x",
            "[::1]:5000/a",
            "Registry.Example.COM/a",
            "REG/a",
            "ghcr.io/acme/a__b.c-d---e:V1",
            "registry.k8s.io/pause:3.10",
            "a:5000",
            &digest,
            &both,
            &longest,
        ] {
            assert_eq!(check(image), Ok(()), "{image}");
        }
    }

    #[test]
    fn what_cannot_be() {
        let id = SHA.to_owned();
        let long = format!("localhost/{}", "a".repeat(246));
        let tag = format!("a:{}", "t".repeat(129));
        let short = format!("a@sha256:{}", &SHA[1..]);
        let upper = format!("a@sha256:{}", SHA.to_uppercase());
        for (image, expected) in [
            ("", "is empty"),
            ("Debian", "in lower case"),
            ("acme/Build:1", "in lower case"),
            ("de bian", "holds ' '"),
            (" debian", "holds ' '"),
            ("debian\n", "holds '\\n'"),
            ("debian:", "empty tag"),
            (":12", "no repository"),
            ("debian:.12", "tag `.12`"),
            ("debian:1:2", "':' in its name"),
            ("https://ghcr.io/a/b", "is a URL"),
            ("ghcr.io/", "no repository"),
            ("a//b", "between two slashes"),
            ("a/b/", "at its end"),
            ("/a", "between two slashes"),
            ("-a", "begins or ends"),
            ("a..b", "`..` separates nothing"),
            ("a___b", "`___`"),
            ("a._b", "`._`"),
            ("ghcr.io:x/a", "port is not a number"),
            ("ghcr.io:/a", "port is not a number"),
            ("-x.io/a", "no host name"),
            ("a..io/b", "no host name"),
            ("[::1/a", "not closed"),
            ("[xyz:1]/a", "no IPv6"),
            ("debian@12", "digest `12`"),
            ("debian@", "digest ``"),
            ("debian@md5:aa", "sha256:"),
            ("日本", "'日' in its name"),
            (&id, "id of an image"),
            (&long, "at most 255"),
            (&tag, "129 bytes"),
            (&short, "64 hex digits"),
            (&upper, "lower case"),
        ] {
            let problem = check(image).unwrap_err();
            assert!(problem.contains(expected), "{image}: {problem}");
        }
    }

    proptest! {
        #[test]
        fn names_by_the_grammar_are_accepted(
            registry in r"([A-Za-z0-9][a-z0-9-]{0,5}[a-z0-9]\.[a-z]{2,3}(:[0-9]{1,5})?|localhost)",
            path in r"[a-z0-9]{1,6}((\.|_|__|-{1,3})[a-z0-9]{1,4}){0,2}(/[a-z0-9]{1,6}){0,2}",
            name in r"[a-z0-9]{1,6}((\.|_|__|-{1,3})[a-z0-9]{1,4}){0,2}",
            tag in r"(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,12})?",
        ) {
            prop_assert_eq!(check(&format!("{registry}/{path}{tag}")), Ok(()));
            prop_assert_eq!(check(&format!("{name}{tag}")), Ok(()));
        }

        #[test]
        fn nothing_panics(image in "(?s).{0,80}") {
            let _ = check(&image);
        }
    }
}

//! The file with the token.

use super::Error;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use subtle::{Choice, ConstantTimeEq as _};

/// How long a token that was read is used before the file is looked at again.
const FRESH: Duration = Duration::from_secs(1);

/// A file with one token per line, read again (at most once a second, and only when a token is asked for), so that
/// tokens can be changed while programs run: add the new one as a second line for the servers, then give it to the
/// clients, then take the old one away.
///
/// A file that becomes unreadable or empty later keeps its last tokens, and is logged.
#[derive(Debug)]
pub struct TokenFile {
    path: PathBuf,
    flag: &'static str,
    state: Mutex<State>,
}

struct State {
    tokens: Vec<String>,
    read: Instant,
    broken: bool,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("tokens", &self.tokens.len()).field("broken", &self.broken).finish()
    }
}

impl TokenFile {
    /// Reads the file, given by `flag`, for the first time.
    ///
    /// # Errors
    /// If it cannot be read, or holds no usable token.
    pub fn open(path: &Path, flag: &'static str) -> Result<Self, Error> {
        let tokens = read(path, flag)?;
        let state = State { tokens, read: Instant::now(), broken: false };
        Ok(TokenFile { path: path.to_owned(), flag, state: Mutex::new(state) })
    }

    /// Whether this is one of the tokens. Takes the same time wherever they differ.
    pub fn accepts(&self, presented: &[u8]) -> bool {
        self.with_fresh(|tokens| {
            let mut found = Choice::from(0);
            for token in tokens {
                found |= token.as_bytes().ct_eq(presented);
            }
            found.into()
        })
    }

    /// The token to present: the first.
    pub(crate) fn first(&self) -> String {
        self.with_fresh(|tokens| tokens.first().cloned().unwrap_or_default())
    }

    fn with_fresh<T>(&self, use_tokens: impl FnOnce(&[String]) -> T) -> T {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.read.elapsed() >= FRESH {
            state.read = Instant::now();
            match read(&self.path, self.flag) {
                Ok(tokens) => {
                    if state.tokens != tokens {
                        tracing::info!(path = %self.path.display(), "the token file has changed");
                        state.tokens = tokens;
                    }
                    state.broken = false;
                }
                Err(error) if !state.broken => {
                    tracing::error!(%error, "keeping the tokens read before");
                    state.broken = true;
                }
                Err(_) => {}
            }
        }
        use_tokens(&state.tokens)
    }
}

fn read(path: &Path, flag: &'static str) -> Result<Vec<String>, Error> {
    let text =
        std::fs::read_to_string(path).map_err(|source| Error::Unreadable { path: path.to_owned(), flag, source })?;
    let unusable = |what: String| Error::Unusable { path: path.to_owned(), flag, what };
    let mut tokens = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let token = line.trim();
        if token.is_empty() {
            continue;
        }
        if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            let number = number + 1;
            return Err(unusable(format!("has an unusable line {number}: a token is printable ASCII without spaces")));
        }
        tokens.push(token.to_owned());
    }
    if tokens.is_empty() {
        return Err(unusable("is empty: it must hold a token, for example from `openssl rand -hex 32`".to_owned()));
    }
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unusable_files_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("missing");
        let error = TokenFile::open(&missing, "--auth-token-file").unwrap_err().to_string();
        assert!(error.contains("missing") && error.contains("--auth-token-file"), "{error}");
        for (content, part) in [("", "is empty"), (" \n\n", "is empty"), ("a\nb c\n", "line 2"), ("h\u{e9}", "line 1")]
        {
            let path = dir.path().join("token");
            std::fs::write(&path, content).unwrap();
            let error = TokenFile::open(&path, "--auth-token-file").unwrap_err().to_string();
            assert!(error.contains(part) && error.contains("token"), "{content:?}: {error}");
            assert!(!error.contains("b c"), "the token itself must not be shown: {error}");
        }
    }

    #[test]
    fn a_changed_file_is_read_again_and_a_lost_one_keeps_its_tokens() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, "old\n").unwrap();
        let file = TokenFile::open(&path, "--auth-token-file").unwrap();
        assert!(file.accepts(b"old"));
        let expire = || file.state.lock().unwrap().read = Instant::now() - FRESH;

        std::fs::write(&path, "new\nold\n").unwrap();
        expire();
        assert!(file.accepts(b"old") && file.accepts(b"new"));
        assert_eq!(file.first(), "new");

        std::fs::remove_file(&path).unwrap();
        expire();
        assert!(file.accepts(b"new"));

        std::fs::write(&path, "newest").unwrap();
        expire();
        assert!(!file.accepts(b"new") && file.accepts(b"newest"));
    }

    #[test]
    fn debug_shows_no_token() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "hunter2").unwrap();
        assert!(!format!("{:?}", TokenFile::open(file.path(), "--auth-token-file").unwrap()).contains("hunter2"));
    }
}

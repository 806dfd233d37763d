//! The server asks for a pause (`Retry-After`); everything waits for its end.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use http::{HeaderMap, StatusCode};
use tokio::time::Instant;

use super::cluster::retry_after;

/// Longer than this nobody waits without asking again, whatever the server says.
const LONGEST: Duration = Duration::from_secs(60);

/// When the next request may be sent.
#[derive(Debug, Default)]
pub(super) struct Pause {
    until: Mutex<Option<Instant>>,
}

impl Pause {
    /// Looks whether an answer asks for one: too many requests, or a server that cannot work now.
    pub(super) fn note(&self, status: StatusCode, headers: &HeaderMap) {
        if status != StatusCode::TOO_MANY_REQUESTS && !status.is_server_error() {
            return;
        }
        let Some(time) = retry_after(headers).filter(|time| !time.is_zero()) else { return };
        let until = Instant::now() + time.min(LONGEST);
        let mut current = self.until.lock().unwrap_or_else(PoisonError::into_inner);
        if current.is_none_or(|current| current < until) {
            *current = Some(until);
        }
    }

    /// Waits for its end, if there is one.
    pub(super) async fn over(&self) {
        loop {
            let until = *self.until.lock().unwrap_or_else(PoisonError::into_inner);
            match until {
                Some(until) if until > Instant::now() => tokio::time::sleep_until(until).await,
                _ => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(after: &'static str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(http::header::RETRY_AFTER, http::HeaderValue::from_static(after));
        headers
    }

    async fn waited(pause: &Pause) -> Duration {
        let before = Instant::now();
        pause.over().await;
        before.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn waits_as_long_as_the_server_says() {
        let pause = Pause::default();
        assert_eq!(waited(&pause).await, Duration::ZERO);
        pause.note(StatusCode::TOO_MANY_REQUESTS, &answer("7"));
        pause.note(StatusCode::SERVICE_UNAVAILABLE, &answer("2"));
        let time = waited(&pause).await;
        assert!((7.0..7.1).contains(&time.as_secs_f64()), "{time:?}");
        assert_eq!(waited(&pause).await, Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_but_a_plain_number_of_a_server_in_need_counts() {
        let pause = Pause::default();
        pause.note(StatusCode::OK, &answer("7"));
        pause.note(StatusCode::CONFLICT, &answer("7"));
        pause.note(StatusCode::TOO_MANY_REQUESTS, &answer("soon"));
        pause.note(StatusCode::TOO_MANY_REQUESTS, &HeaderMap::new());
        assert_eq!(waited(&pause).await, Duration::ZERO);
        pause.note(StatusCode::TOO_MANY_REQUESTS, &answer("99999999999"));
        let time = waited(&pause).await;
        assert!((60.0..60.1).contains(&time.as_secs_f64()), "{time:?}");
    }
}

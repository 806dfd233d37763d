//! Who waits for what.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

/// `None` once all watches have ended.
type Senders<K> = Mutex<Option<HashMap<K, watch::Sender<u64>>>>;

/// Counters of changes by key; a key exists only while someone watches it.
pub(crate) struct Watchers<K> {
    senders: Arc<Senders<K>>,
}

/// Follows one key.
pub(crate) struct Watch<K: Eq + Hash> {
    key: K,
    senders: Arc<Senders<K>>,
    receiver: watch::Receiver<u64>,
}

fn lock<K>(senders: &Senders<K>) -> MutexGuard<'_, Option<HashMap<K, watch::Sender<u64>>>> {
    senders.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<K: Eq + Hash + Clone> Watchers<K> {
    pub(crate) fn new() -> Self {
        Self { senders: Arc::new(Mutex::new(Some(HashMap::new()))) }
    }

    pub(crate) fn watch(&self, key: K) -> Watch<K> {
        let receiver = match &mut *lock(&self.senders) {
            Some(senders) => senders.entry(key.clone()).or_insert_with(|| watch::channel(0).0).subscribe(),
            None => watch::channel(0).1,
        };
        Watch { key, senders: self.senders.clone(), receiver }
    }

    pub(crate) fn notify<'a, Q>(&self, keys: impl Iterator<Item = &'a Q>)
    where
        K: std::borrow::Borrow<Q>,
        Q: Eq + Hash + ?Sized + 'a,
    {
        let senders = lock(&self.senders);
        let Some(senders) = senders.as_ref().filter(|senders| !senders.is_empty()) else { return };
        for key in keys {
            if let Some(sender) = senders.get(key) {
                sender.send_modify(|count| *count += 1);
            }
        }
    }

    /// Ends all watches, also those that are made later.
    pub(crate) fn close(&self) {
        *lock(&self.senders) = None;
    }
}

impl<K: Eq + Hash> Watch<K> {
    /// What happened so far counts as seen.
    pub(crate) fn mark_seen(&mut self) {
        self.receiver.mark_unchanged();
    }

    /// Waits for a change that was not seen; `false`: there will be none.
    pub(crate) async fn changed(&mut self) -> bool {
        self.receiver.changed().await.is_ok()
    }
}

impl<K: Eq + Hash> Drop for Watch<K> {
    fn drop(&mut self) {
        let mut senders = lock(&self.senders);
        let Some(senders) = senders.as_mut() else { return };
        // This receiver is still counted.
        if senders.get(&self.key).is_some_and(|sender| sender.receiver_count() <= 1) {
            senders.remove(&self.key);
        }
    }
}

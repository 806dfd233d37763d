//! Names of workers.

use std::fmt::Write;

use sha2::{Digest, Sha256};

use crate::driver::WorkerKey;

/// Characters of the task id in a name: enough to recognise it, few enough for the rest.
const READABLE: usize = 20;

/// `otto-`, what a DNS label can show of the task id, 10 hex digits of its SHA-256, index and attempt: a DNS-1123 label of
/// at most 58 bytes, the same for the same key. Whatever the id holds, the name is no path.
pub(crate) fn worker_name(key: &WorkerKey) -> String {
    let mut name = String::from("otto-");
    let start = name.len();
    for character in key.task_id.chars() {
        let character = character.to_ascii_lowercase();
        if character.is_ascii_lowercase() || character.is_ascii_digit() {
            name.push(character);
        } else if name.len() > start && !name.ends_with('-') {
            name.push('-');
        }
        if name.len() - start == READABLE {
            break;
        }
    }
    if name.len() > start && !name.ends_with('-') {
        name.push('-');
    }
    let digest = Sha256::digest(key.task_id.as_bytes());
    for byte in &digest[..5] {
        let digit = |half: u8| char::from_digit(half.into(), 16).unwrap_or_default();
        name.extend([digit(byte >> 4), digit(byte & 15)]);
    }
    // Writing into a string never fails.
    let _ = write!(name, "-{}-{}", key.index, key.attempt);
    name
}

/// Whether a directory entry can be a run directory.
pub(crate) fn is_worker_name(name: &str) -> bool {
    let label = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    name.starts_with("otto-") && name.len() <= 63 && name.bytes().all(label)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(task_id: &str, index: u32, attempt: u32) -> String {
        worker_name(&WorkerKey { task_id: task_id.to_owned(), index, attempt })
    }

    #[test]
    fn names_are_recognisable() {
        assert_eq!(name("hello", 0, 1), "otto-hello-2cf24dba5f-0-1");
        assert!(
            name("Build #12 of acme/shop", 3, 2).starts_with("otto-build-12-of-acme-sho-"),
            "{}",
            name("Build #12 of acme/shop", 3, 2)
        );
        assert!(name("../../etc/passwd", 0, 1).starts_with("otto-etc-passwd-"));
        assert!(name("日本", 0, 1).starts_with("otto-") && !name("日本", 0, 1).contains("--"));
    }

    proptest! {
        #[test]
        fn names_are_labels_and_tell_keys_apart(a in ".{1,60}", b in ".{1,60}", index: u32, attempt: u32) {
            let one = name(&a, index, attempt);
            prop_assert!(is_worker_name(&one) && one.as_bytes()[one.len() - 1].is_ascii_digit(), "{one}");
            prop_assert_eq!(&one, &name(&a, index, attempt));
            prop_assert_eq!(a == b, one == name(&b, index, attempt));
            prop_assert_ne!(&one, &name(&a, index, attempt.wrapping_add(1)));
            prop_assert_ne!(&one, &name(&a, index.wrapping_add(1), attempt));
        }
    }
}

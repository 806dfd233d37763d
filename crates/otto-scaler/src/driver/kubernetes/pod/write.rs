//! JSON, written straight into bytes.

use std::io::Write as _;

/// A comma, unless nothing is there to be separated from.
pub(super) fn separate(json: &mut Vec<u8>) {
    if !matches!(json.last(), None | Some(b'[' | b'{')) {
        json.push(b',');
    }
}

/// Members or items that were written before, without brackets.
pub(super) fn splice(json: &mut Vec<u8>, written: &[u8]) {
    if !written.is_empty() {
        separate(json);
        json.extend_from_slice(written);
    }
}

/// A string in quotes.
pub(super) fn string(json: &mut Vec<u8>, text: &str) {
    // Writing a string into memory cannot fail.
    let _ = serde_json::to_writer(json, text);
}

/// A number, or `null`.
pub(super) fn number(json: &mut Vec<u8>, number: Option<u64>) {
    let _ = match number {
        Some(number) => write!(json, "{number}"),
        None => json.write_all(b"null"),
    };
}

/// One more `"name":"text"` of an object.
pub(super) fn member(json: &mut Vec<u8>, name: &str, text: &str) {
    separate(json);
    string(json, name);
    json.push(b':');
    string(json, text);
}

/// An object with what `members` writes.
pub(super) fn object(json: &mut Vec<u8>, members: impl FnOnce(&mut Vec<u8>)) {
    json.push(b'{');
    members(json);
    json.push(b'}');
}

/// An array with what `items` writes.
pub(super) fn array(json: &mut Vec<u8>, items: impl FnOnce(&mut Vec<u8>)) {
    json.push(b'[');
    items(json);
    json.push(b']');
}

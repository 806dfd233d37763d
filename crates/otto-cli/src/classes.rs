//! What a failure is about, in words.

use otto_proto::v1::FailureClass;

/// As scripts read it: `out_of_memory`. `None`: there was none.
pub(crate) fn name(class: FailureClass) -> Option<String> {
    let name = class.as_str_name().trim_start_matches("FAILURE_CLASS_").to_lowercase();
    (class != FailureClass::Unspecified).then_some(name)
}

/// ` (out of memory)` after what failed; nothing where that says as much.
pub(crate) fn about(class: FailureClass) -> String {
    match name(class) {
        Some(name) if !matches!(class, FailureClass::Exited | FailureClass::Stopped) => {
            format!(" ({})", name.replace('_', " "))
        }
        _ => String::new(),
    }
}

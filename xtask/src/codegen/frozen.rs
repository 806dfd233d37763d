//! The part of the contracts that is frozen: all that no comment marks as "Not yet frozen.".

use std::collections::BTreeSet;

use prost_types::{DescriptorProto, EnumDescriptorProto, FileDescriptorProto, FileDescriptorSet};

const MARK: &str = "Not yet frozen";

// Field numbers of descriptor.proto, which source locations are made of.
const FILE_SYNTAX: i32 = 12;
const FILE_MESSAGE: i32 = 4;
const FILE_ENUM: i32 = 5;
const FILE_SERVICE: i32 = 6;
const MESSAGE_FIELD: i32 = 2;
const MESSAGE_ENUM: i32 = 4;
const SERVICE_METHOD: i32 = 2;

/// The frozen part of `set`, comments and options left out.
pub(super) fn part_of(set: FileDescriptorSet) -> FileDescriptorSet {
    let file = set.file.into_iter().filter(|file| file.package() == "ottoscaler.v1").filter_map(freeze_file).collect();
    FileDescriptorSet { file }
}

fn freeze_file(mut file: FileDescriptorProto) -> Option<FileDescriptorProto> {
    let marked: BTreeSet<Vec<i32>> = file
        .source_code_info
        .take()
        .into_iter()
        .flat_map(|info| info.location)
        .filter(|location| {
            location.leading_comments().contains(MARK)
                || location.leading_detached_comments.iter().any(|comment| comment.contains(MARK))
        })
        .map(|location| location.path)
        .collect();
    if marked.contains(&vec![FILE_SYNTAX]) {
        return None;
    }
    let open = |path: &[i32]| marked.contains(path);
    let mut index = 0..;
    file.message_type.retain(|_| !open(&[FILE_MESSAGE, index.next().unwrap_or_default()]));
    // Positions are those before anything was taken out.
    let kept: Vec<i32> = (0..).filter(|n| !open(&[FILE_MESSAGE, *n])).take(file.message_type.len()).collect();
    for (message, position) in file.message_type.iter_mut().zip(kept) {
        freeze_message(message, &[FILE_MESSAGE, position], &open);
    }
    let mut index = 0..;
    file.enum_type.retain(|_| !open(&[FILE_ENUM, index.next().unwrap_or_default()]));
    file.enum_type.iter_mut().for_each(strip_enum);
    for (position, service) in file.service.iter_mut().enumerate() {
        let mut index = 0..;
        service
            .method
            .retain(|_| !open(&[FILE_SERVICE, position as i32, SERVICE_METHOD, index.next().unwrap_or_default()]));
    }
    file.dependency.clear();
    Some(file)
}

fn freeze_message(message: &mut DescriptorProto, path: &[i32], open: &impl Fn(&[i32]) -> bool) {
    let below = |kind: i32, n: i32| [path, &[kind, n]].concat();
    let mut index = 0..;
    message.field.retain(|_| !open(&below(MESSAGE_FIELD, index.next().unwrap_or_default())));
    let mut index = 0..;
    message.enum_type.retain(|_| !open(&below(MESSAGE_ENUM, index.next().unwrap_or_default())));
    message.enum_type.iter_mut().for_each(strip_enum);
}

fn strip_enum(value: &mut EnumDescriptorProto) {
    value.options = None;
}

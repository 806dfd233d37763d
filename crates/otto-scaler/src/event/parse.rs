//! Fields of a stream entry, and gRPC requests, into a [`ScaleEvent`].

use otto_proto::v1::ScaleRequest;

use super::{Direction, Invalid, ScaleEvent};
use crate::task::EntryId;

/// Reads the fields of a stream entry. An error is the reason for its dead letter.
pub(crate) fn from_fields(_entry: EntryId, _fields: &[(String, Vec<u8>)]) -> Result<ScaleEvent, Invalid> {
    Err(Invalid { field: "type".into(), reason: "not implemented".into() })
}

/// Reads a gRPC request (`build_config` and `metadata` included). An error is INVALID_ARGUMENT for its field.
pub(crate) fn from_request(_request: ScaleRequest, _direction: Direction) -> Result<ScaleEvent, Invalid> {
    Err(Invalid { field: "task_id".into(), reason: "not implemented".into() })
}

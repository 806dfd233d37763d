//! Events in the format of the HTML standard, section "Server-sent events".

use bytes::{Bytes, BytesMut};
use otto_proto::v1::ReadLogsResponse;
use serde::Serialize;

use super::model::{Event, Gap, Line};

/// Events waiting to leave.
#[derive(Default)]
pub(super) struct Frames(BytesMut);

impl Frames {
    /// Everything there is, if there is something.
    pub(super) fn take(&mut self) -> Option<Bytes> {
        if self.0.is_empty() { None } else { Some(self.0.split().freeze()) }
    }

    /// Whether there is nothing.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A comment, which clients ignore.
    pub(super) fn comment(&mut self) {
        self.0.extend_from_slice(b": still here\n\n");
    }

    /// One event. JSON has no newline of its own, so its text is one `data` line.
    pub(super) fn event(&mut self, name: &str, id: Option<&str>, value: &impl Serialize) {
        self.0.extend_from_slice(b"event: ");
        self.0.extend_from_slice(name.as_bytes());
        if let Some(id) = id {
            self.0.extend_from_slice(b"\nid: ");
            self.0.extend_from_slice(id.as_bytes());
        }
        self.0.extend_from_slice(b"\ndata: ");
        let mut writer = bytes::BufMut::writer(std::mem::take(&mut self.0));
        let written = serde_json::to_writer(&mut writer, value);
        self.0 = writer.into_inner();
        if let Err(error) = written {
            tracing::error!(%error, name, "an event cannot be written as JSON");
        }
        self.0.extend_from_slice(b"\n\n");
    }

    /// A part of a log. Its position goes with its last event: they leave in one piece, and a client that lost the rest of
    /// it is given all of it again.
    pub(super) fn part(&mut self, part: &ReadLogsResponse) {
        let token = Some(part.resume_token.as_str()).filter(|token| !token.is_empty());
        let gaps: Vec<_> = part.gaps.iter().filter_map(Gap::of).collect();
        let mut left =
            usize::from(part.skipped_lines > 0) + part.events.len() + gaps.len() + usize::from(!part.lines.is_empty());
        let mut id = move || {
            left -= 1;
            if left == 0 { token } else { None }
        };
        if part.skipped_lines > 0 {
            self.event("skipped", id(), &serde_json::json!({ "lines": part.skipped_lines }));
        }
        for event in &part.events {
            self.event("event", id(), &Event::from(event));
        }
        for gap in &gaps {
            self.event("gap", id(), gap);
        }
        if !part.lines.is_empty() {
            let lines: Vec<_> = part.lines.iter().map(Line::from).collect();
            self.event("lines", id(), &lines);
        }
    }
}

#[cfg(test)]
mod tests {
    use otto_proto::v1::{LineGap, LogGap, LogLine};

    use super::*;

    #[test]
    fn the_position_goes_with_the_last_event_of_a_part() {
        let part = ReadLogsResponse {
            lines: vec![LogLine { sequence: 5, message: "a\nb\r".into(), ..LogLine::default() }],
            gaps: vec![LineGap {
                gap: Some(LogGap { first_sequence: 2, last_sequence: 4, ..LogGap::default() }),
                ..LineGap::default()
            }],
            resume_token: "here".into(),
            ..ReadLogsResponse::default()
        };
        let mut frames = Frames::default();
        frames.part(&part);
        let text = String::from_utf8(frames.take().unwrap().to_vec()).unwrap();
        let events: Vec<&str> = text.split_terminator("\n\n").collect();
        assert_eq!(events.len(), 2);
        assert!(events[0].starts_with("event: gap\ndata: {") && !events[0].contains("id:"), "{text}");
        assert!(events[1].starts_with("event: lines\nid: here\ndata: [{") && events[1].contains(r"a\nb\r"), "{text}");
        assert!(frames.take().is_none());
    }
}

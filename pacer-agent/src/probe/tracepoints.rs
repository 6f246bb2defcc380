//! Where this kernel's tracepoints keep what the programs read from them.

use std::path::Path;
use std::{fs, io};

use pacer_common::tracepoint::TracepointLayout;

use super::attach::TRACEFS;
use super::tracepoint_format::{Field, find_field};

/// A tracepoint's group and name.
type Tracepoint = (&'static str, &'static str);

const COMPLETE: Tracepoint = ("io_uring", "io_uring_complete");
const SEND: Tracepoint = ("sock", "sock_send_length");
const RECEIVE: Tracepoint = ("sock", "sock_recv_length");

/// A field that a program reads.
struct Wanted {
    tracepoint: Tracepoint,
    field: &'static str,
    /// As many as the program reads.
    size_bytes: u32,
    /// Where the program is told its offset.
    place: fn(&mut TracepointLayout) -> &mut u32,
}

const fn wanted(
    tracepoint: Tracepoint,
    field: &'static str,
    size_bytes: u32,
    place: fn(&mut TracepointLayout) -> &mut u32,
) -> Wanted {
    Wanted {
        tracepoint,
        field,
        size_bytes,
        place,
    }
}

const WANTED: [Wanted; 8] = [
    wanted(COMPLETE, "req", 8, |layout| &mut layout.complete_request),
    wanted(COMPLETE, "res", 4, |layout| &mut layout.complete_result),
    wanted(SEND, "sk", 8, |layout| &mut layout.send_socket),
    wanted(SEND, "family", 2, |layout| &mut layout.send_family),
    wanted(SEND, "protocol", 2, |layout| &mut layout.send_protocol),
    wanted(SEND, "ret", 4, |layout| &mut layout.send_result),
    wanted(RECEIVE, "ret", 4, |layout| &mut layout.receive_result),
    wanted(RECEIVE, "flags", 4, |layout| &mut layout.receive_flags),
];

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Tracepoints {
    pub(super) layout: TracepointLayout,
    /// Tracepoints that cannot be used, each with the reason.
    unusable: Vec<(&'static str, String)>,
}

impl Tracepoints {
    /// Why the tracepoint `name` cannot be used, if so.
    pub(super) fn problem(&self, name: &str) -> Option<&str> {
        self.unusable
            .iter()
            .find_map(|(tracepoint, reason)| (*tracepoint == name).then_some(reason.as_str()))
    }
}

/// Reads the running kernel's.
pub(super) fn read() -> Tracepoints {
    find_all(|(category, name)| {
        let format = Path::new("events").join(category).join(name).join("format");
        let read = |root| fs::read_to_string(Path::new(root).join(&format));
        let [usual, old] = TRACEFS;
        // Where nobody has mounted it, it is not readable for other reasons.
        read(usual).or_else(|error| read(old).map_err(|_| error))
    })
}

fn find_all(format_of: impl Fn(Tracepoint) -> io::Result<String>) -> Tracepoints {
    let mut found = Tracepoints::default();
    for wanted in WANTED {
        let (_, name) = wanted.tracepoint;
        match find(&wanted, format_of(wanted.tracepoint)) {
            Ok(Some(field)) => *(wanted.place)(&mut found.layout) = field.offset_bytes,
            // Attaching to it says so.
            Ok(None) => {}
            Err(reason) => found.unusable.push((name, reason)),
        }
    }
    found
}

/// `None` if there is no such tracepoint.
fn find(wanted: &Wanted, format: io::Result<String>) -> Result<Option<Field>, String> {
    let field = wanted.field;
    let format = match format {
        Ok(format) => format,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("its format cannot be read: {error}")),
    };
    let Some(found) = find_field(&format, field) else {
        return Err(format!("this kernel's has no {field}"));
    };
    let bytes = found.size_bytes;
    if bytes != wanted.size_bytes {
        return Err(format!("{field} has {bytes} bytes in this kernel's"));
    }
    Ok(Some(found))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn format_of(fields: &[(&str, u32, u32)]) -> String {
        let line = |(name, offset, size): &(&str, u32, u32)| {
            format!("\tfield:int {name};\toffset:{offset};\tsize:{size};\tsigned:1;\n")
        };
        fields.iter().map(line).collect()
    }

    fn check(complete: io::Result<&[(&str, u32, u32)]>) -> Tracepoints {
        let complete = complete.map(format_of);
        find_all(|tracepoint| match (&complete, tracepoint) {
            (Ok(format), COMPLETE) => Ok(format.clone()),
            (Err(error), COMPLETE) => Err(error.kind().into()),
            (_, RECEIVE) => Ok(format_of(&[("flags", 40, 4), ("ret", 16, 4)])),
            _ => Err(io::ErrorKind::NotFound.into()),
        })
    }

    #[test]
    fn offsets_go_where_the_programs_look() {
        let found = check(Ok(&[("res", 32, 4), ("req", 24, 8)]));
        let expected = TracepointLayout {
            complete_request: 24,
            complete_result: 32,
            receive_result: 16,
            receive_flags: 40,
            ..TracepointLayout::default()
        };
        assert_eq!(found.layout, expected);
        assert!(found.unusable.is_empty(), "{found:?}");
    }

    #[test]
    fn what_cannot_be_used_is_said() {
        let reason = |found: &Tracepoints| found.problem(COMPLETE.1).map(str::to_owned);
        let found = check(Ok(&[("req", 24, 8)]));
        assert_eq!(reason(&found), Some("this kernel's has no res".to_owned()));
        assert_eq!(found.problem(RECEIVE.1), None);
        let found = check(Ok(&[("req", 24, 8), ("res", 32, 8)]));
        let text = reason(&found).expect("a reason");
        assert!(text.contains("8 bytes"), "{text}");
        let found = check(Err(io::ErrorKind::PermissionDenied.into()));
        let text = reason(&found).expect("a reason");
        assert!(text.starts_with("its format cannot be read"), "{text}");
        // Not there at all: attaching to it says so.
        let found = check(Err(io::ErrorKind::NotFound.into()));
        assert_eq!(reason(&found), None);
    }
}

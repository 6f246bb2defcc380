//! Finds a field in a tracepoint's description, `events/…/format` in tracefs.
//! Pure.

/// Where a field is in the tracepoint's record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Field {
    pub(super) offset_bytes: u32,
    pub(super) size_bytes: u32,
}

/// The field `name` of the description `format`; `None` if it has none such.
pub(super) fn find_field(format: &str, name: &str) -> Option<Field> {
    format.lines().find_map(|line| {
        let mut parts = line.trim().strip_prefix("field:")?.split(';');
        if declared_name(parts.next()?) != name {
            return None;
        }
        let mut number = |label: &str| parts.next()?.trim().strip_prefix(label)?.parse().ok();
        Some(Field {
            offset_bytes: number("offset:")?,
            size_bytes: number("size:")?,
        })
    })
}

/// `rwbs` in `char rwbs[10]`, `sk` in `void * sk`.
fn declared_name(declaration: &str) -> &str {
    let last = declaration.split_whitespace().next_back().unwrap_or("");
    let name = last.split('[').next().unwrap_or("");
    name.trim_start_matches('*')
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORMAT: &str = "name: block_rq_issue
ID: 2104
format:
\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;

\tfield:void * sk;\toffset:8;\tsize:8;\tsigned:0;
\tfield:const char *name;\toffset:16;\tsize:8;\tsigned:0;
\tfield:char rwbs[10];\toffset:34;\tsize:10;\tsigned:0;
\tfield:__data_loc char[] cmd;\toffset:60;\tsize:4;\tsigned:0;
\tfield:int broken;\toffset:x;\tsize:4;\tsigned:0;

print fmt: \"%d\", REC->sector
";

    fn check(name: &str, expected: Option<(u32, u32)>) {
        let found = find_field(FORMAT, name);
        let found = found.map(|field| (field.offset_bytes, field.size_bytes));
        assert_eq!(found, expected, "{name}");
    }

    #[test]
    fn fields_are_found_by_name() {
        check("common_type", Some((0, 2)));
        check("sk", Some((8, 8)));
        check("name", Some((16, 8)));
        check("rwbs", Some((34, 10)));
        check("cmd", Some((60, 4)));
        check("sector", None);
        check("broken", None);
        check("", None);
    }

    #[test]
    fn no_cut_of_it_panics() {
        for length in 0..FORMAT.len() {
            let _ = find_field(&FORMAT[..length], "cmd");
        }
    }
}

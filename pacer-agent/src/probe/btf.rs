//! Reads where the fields of a kernel structure are, from the kernel's own
//! description of its types. Pure.
//!
//! aya reads the same file and keeps its fields to itself; the reader on the
//! registry is under a licence that a static binary cannot meet. The format is
//! <https://docs.kernel.org/bpf/btf.html>.

const MAGIC: u16 = 0xEB9F;
const HEADER_BYTES: usize = 24;

const INT: u32 = 1;
const ARRAY: u32 = 3;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const ENUM: u32 = 6;
const TYPEDEF: u32 = 8;
const VOLATILE: u32 = 9;
const CONST: u32 = 10;
const FUNC_PROTO: u32 = 13;
const VAR: u32 = 14;
const DATASEC: u32 = 15;
const DECL_TAG: u32 = 17;
const TYPE_TAG: u32 = 18;
const ENUM64: u32 = 19;

/// Deeper nesting than any structure has.
const MAX_DEPTH: u32 = 16;

/// The types of a kernel, in the byte order of this machine.
pub(super) struct Btf {
    data: Vec<u8>,
    /// Where each type begins; number 0 is `void` and has none.
    types: Vec<usize>,
    strings: usize,
}

/// The fixed front of a type.
#[derive(Clone, Copy)]
struct Type {
    name: u32,
    kind: u32,
    members: usize,
    has_bit_fields: bool,
    /// Type that is referred to, where one is.
    refers_to: u32,
    /// Where its members begin.
    body: usize,
}

struct Member {
    name: u32,
    type_id: u32,
    bytes: u32,
}

impl Btf {
    /// Takes the content of `/sys/kernel/btf/vmlinux`. `None` if it is not such.
    pub(super) fn parse(data: Vec<u8>) -> Option<Self> {
        if data.get(..2)? != MAGIC.to_ne_bytes() {
            return None;
        }
        let mut btf = Self {
            data,
            types: vec![0],
            strings: 0,
        };
        let header = usize::try_from(btf.word(4)?).ok()?;
        if header < HEADER_BYTES {
            return None;
        }
        let section = |at| usize::try_from(btf.word(at)?).ok()?.checked_add(header);
        let (mut at, strings) = (section(8)?, section(16)?);
        let end = at.checked_add(usize::try_from(btf.word(12)?).ok()?)?;
        while at < end {
            btf.types.push(at);
            let kind = btf.type_at(at)?;
            at = kind.body + kind.body_bytes()?;
        }
        btf.strings = strings;
        Some(btf)
    }

    /// Offset in bytes of the field that `path` leads to in the structure
    /// `name`. Members without a name are looked into.
    pub(super) fn offset_of(&self, name: &str, path: &[&str]) -> Option<u32> {
        let structure = self
            .types
            .iter()
            .skip(1)
            .filter_map(|&at| self.type_at(at))
            .find(|kind| kind.kind == STRUCT && self.is_named(kind.name, name))?;
        let mut kind = structure;
        let mut offset = 0;
        for field in path {
            let (bytes, type_id) = self.member(&kind, field, 0)?;
            offset += bytes;
            kind = self.resolve(type_id)?;
        }
        Some(offset)
    }

    /// Offset and type of the member `name`.
    fn member(&self, kind: &Type, name: &str, depth: u32) -> Option<(u32, u32)> {
        if !matches!(kind.kind, STRUCT | UNION) || depth > MAX_DEPTH {
            return None;
        }
        (0..kind.members).find_map(|index| {
            let member = self.member_at(kind, index)?;
            if self.is_named(member.name, name) {
                return Some((member.bytes, member.type_id));
            }
            if !self.is_named(member.name, "") {
                return None;
            }
            let inner = self.resolve(member.type_id)?;
            let (bytes, type_id) = self.member(&inner, name, depth + 1)?;
            Some((member.bytes + bytes, type_id))
        })
    }

    fn member_at(&self, kind: &Type, index: usize) -> Option<Member> {
        let at = kind.body + index * 12;
        let bits = self.word(at + 8)?;
        let bits = if kind.has_bit_fields {
            bits & 0xFF_FFFF
        } else {
            bits
        };
        Some(Member {
            name: self.word(at)?,
            type_id: self.word(at + 4)?,
            bytes: bits / 8,
        })
    }

    /// The type with this number, its names and qualifiers taken off. `None` for
    /// `void` too.
    fn resolve(&self, mut type_id: u32) -> Option<Type> {
        for _ in 0..MAX_DEPTH {
            let at = *self.types.get(usize::try_from(type_id).ok()?)?;
            if at == 0 {
                return None;
            }
            let kind = self.type_at(at)?;
            if !matches!(kind.kind, TYPEDEF | VOLATILE | CONST | TYPE_TAG) {
                return Some(kind);
            }
            type_id = kind.refers_to;
        }
        None
    }

    fn type_at(&self, at: usize) -> Option<Type> {
        let info = self.word(at + 4)?;
        Some(Type {
            name: self.word(at)?,
            kind: info >> 24 & 0x1F,
            members: usize::try_from(info & 0xFFFF).ok()?,
            has_bit_fields: info >> 31 != 0,
            refers_to: self.word(at + 8)?,
            body: at + 12,
        })
    }

    fn is_named(&self, offset: u32, name: &str) -> bool {
        let Some(start) = usize::try_from(offset)
            .ok()
            .and_then(|offset| self.strings.checked_add(offset))
        else {
            return false;
        };
        let end = start + name.len();
        self.data.get(start..end) == Some(name.as_bytes()) && self.data.get(end) == Some(&0)
    }

    fn word(&self, at: usize) -> Option<u32> {
        let bytes = self.data.get(at..at.checked_add(4)?)?;
        bytes.try_into().ok().map(u32::from_ne_bytes)
    }
}

impl Type {
    /// Bytes after the fixed front. `None` for a kind that is not known: what
    /// follows cannot be found then.
    const fn body_bytes(&self) -> Option<usize> {
        Some(match self.kind {
            INT | VAR | DECL_TAG => 4,
            ARRAY => 12,
            STRUCT | UNION | DATASEC | ENUM64 => self.members * 12,
            ENUM | FUNC_PROTO => self.members * 8,
            // PTR, FWD, TYPEDEF, qualifiers, FUNC, FLOAT, TYPE_TAG.
            2 | 7..=12 | 16 | 18 => 0,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `struct outer { int a; struct { union { int b; }; const struct inner c; }; }`
    /// with `struct inner { int x; int y; }`.
    fn sample() -> Vec<u8> {
        let strings = b"\0int\0inner\0x\0y\0outer\0a\0b\0c\0";
        let name = |text: &str| {
            let needle = format!("\0{text}\0");
            let at = strings
                .windows(needle.len())
                .position(|window| window == needle.as_bytes());
            u32::try_from(at.expect("a string of the sample") + 1).expect("short")
        };
        let info = |kind: u32, members: u32| kind << 24 | members;
        let types: Vec<u32> = [
            &[name("int"), info(INT, 0), 4, 32][..],
            &[name("inner"), info(STRUCT, 2), 8],
            &[name("x"), 1, 0, name("y"), 1, 32],
            &[0, info(CONST, 0), 2],
            &[0, info(UNION, 1), 4, name("b"), 1, 0],
            &[0, info(STRUCT, 2), 12, 0, 4, 0, name("c"), 3, 32],
            &[name("outer"), info(STRUCT, 2), 16],
            &[name("a"), 1, 0, 0, 5, 32],
        ]
        .concat();
        let type_bytes = u32::try_from(types.len() * 4).expect("short");
        let string_bytes = u32::try_from(strings.len()).expect("short");
        let mut data = Vec::new();
        data.extend(MAGIC.to_ne_bytes());
        data.extend([1, 0]);
        for word in [24, 0, type_bytes, type_bytes, string_bytes] {
            data.extend(u32::to_ne_bytes(word));
        }
        data.extend(types.into_iter().flat_map(u32::to_ne_bytes));
        data.extend(strings);
        data
    }

    #[test]
    fn fields_are_found_through_members_without_a_name() {
        let btf = Btf::parse(sample()).expect("a sample");
        assert_eq!(btf.offset_of("outer", &["a"]), Some(0));
        assert_eq!(btf.offset_of("outer", &["b"]), Some(4));
        assert_eq!(btf.offset_of("outer", &["c", "y"]), Some(12));
        assert_eq!(btf.offset_of("inner", &["y"]), Some(4));
        assert_eq!(btf.offset_of("outer", &["x"]), None);
        assert_eq!(btf.offset_of("missing", &["x"]), None);
    }

    #[test]
    fn no_cut_of_it_panics() {
        let whole = sample();
        for length in 0..whole.len() {
            if let Some(btf) = Btf::parse(whole[..length].to_vec()) {
                let _ = btf.offset_of("outer", &["c", "y"]);
            }
        }
        for at in 0..whole.len() {
            let mut broken = whole.clone();
            broken[at] ^= 0xFF;
            if let Some(btf) = Btf::parse(broken) {
                let _ = btf.offset_of("outer", &["c", "y"]);
            }
        }
    }
}

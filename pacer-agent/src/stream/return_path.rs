//! The return path: what the destination's QEMU tells the source's.
//!
//! Each message is a type and a length, 16 bits each, big endian, and that many
//! bytes. `SHUT` is the last: the destination has loaded the guest (value 0) or
//! has failed. Until it has passed, the end of either direction is a fault.
//! (QEMU: migration/migration.h, `enum mig_rp_message_type`.)

const HEADER_BYTES: usize = 4;
const SHUT: u16 = 1;
const SHUT_BYTES: usize = 4;

/// Reads the return path as it passes.
#[derive(Debug, Default)]
pub struct ReturnPath {
    /// What has been read of the message now passing, as far as it matters.
    held: Vec<u8>,
    /// Payload bytes of it that are still to pass and do not matter.
    skip: usize,
    shut: Option<u32>,
}

impl ReturnPath {
    /// At the start of a return path.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes, cut anywhere.
    pub fn feed(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.skip > 0 {
                let skipped = self.skip.min(bytes.len());
                self.skip -= skipped;
                bytes = &bytes[skipped..];
                continue;
            }
            let taken = (self.wanted() - self.held.len()).min(bytes.len());
            self.held.extend_from_slice(&bytes[..taken]);
            bytes = &bytes[taken..];
            if self.held.len() == self.wanted() {
                self.handle_message();
            }
        }
    }

    /// The value of `SHUT` once it has passed: 0 where the guest was loaded.
    #[must_use]
    pub const fn shut(&self) -> Option<u32> {
        self.shut
    }

    /// How many bytes to hold before the next step: a header, and behind that
    /// of `SHUT` its value.
    fn wanted(&self) -> usize {
        match *self.held {
            [high, low, length_high, length_low, ..]
                if u16::from_be_bytes([high, low]) == SHUT
                    && usize::from(u16::from_be_bytes([length_high, length_low])) == SHUT_BYTES =>
            {
                HEADER_BYTES + SHUT_BYTES
            }
            _ => HEADER_BYTES,
        }
    }

    fn handle_message(&mut self) {
        match *self.held {
            [_, _, _, _, a, b, c, d] => self.shut = Some(u32::from_be_bytes([a, b, c, d])),
            [_, _, high, low] => self.skip = usize::from(u16::from_be_bytes([high, low])),
            _ => {}
        }
        self.held.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PONG: [u8; 8] = [0, 2, 0, 4, 0, 0, 0, 1];
    const SHUT_WELL: [u8; 8] = [0, 1, 0, 4, 0, 0, 0, 0];

    #[test]
    fn shut_is_seen_wherever_the_bytes_are_cut() {
        let bytes = [&PONG[..], &[0, 6, 0, 0], &PONG, &SHUT_WELL].concat();
        for cut in 0..bytes.len() {
            let mut path = ReturnPath::new();
            path.feed(&bytes[..cut]);
            assert_eq!(path.shut(), None, "cut at {cut}");
            path.feed(&bytes[cut..]);
            assert_eq!(path.shut(), Some(0), "cut at {cut}");
        }
    }

    #[test]
    fn a_failed_load_is_told_apart() {
        let mut path = ReturnPath::new();
        path.feed(&[0, 1, 0, 4, 0, 0, 0, 1]);
        assert_eq!(path.shut(), Some(1));
    }

    #[test]
    fn a_payload_that_looks_like_shut_is_none() {
        let mut path = ReturnPath::new();
        path.feed(&[0, 5, 0, 8]);
        path.feed(&SHUT_WELL);
        assert_eq!(path.shut(), None);
    }
}

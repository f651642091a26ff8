use std::fmt;

/// Names up to this many bytes stay on the stack.
const INLINE: usize = 256;

/// Where a [`Name`](super::Name) writes itself: bytes of any value and length.
///
/// The first 256 bytes live inside the buffer, so that an ordinary name allocates nothing; a longer one moves to the
/// heap.
#[derive(Clone)]
pub struct NameBuf {
    inline: [u8; INLINE],
    len: usize,
    /// Holds the whole name once it has outgrown `inline`, and is empty until then.
    spilled: Vec<u8>,
}

impl NameBuf {
    /// An empty name.
    pub const fn new() -> Self {
        Self { inline: [0; INLINE], len: 0, spilled: Vec::new() }
    }

    /// Appends bytes as they are.
    pub fn push_bytes(&mut self, bytes: &[u8]) {
        if self.spilled.is_empty() {
            let end = self.len.saturating_add(bytes.len());
            if let Some(room) = self.inline.get_mut(self.len..end) {
                room.copy_from_slice(bytes);
                self.len = end;
                return;
            }
            self.spilled.reserve(end);
            self.spilled.extend_from_slice(&self.inline[..self.len]);
        }
        self.spilled.extend_from_slice(bytes);
    }

    /// Appends text as it is.
    pub fn push_str(&mut self, text: &str) {
        self.push_bytes(text.as_bytes());
    }

    /// Appends `part` with its length, as the netstring `4:part,`.
    ///
    /// Parts written one after the other with `push_bytes` can run into each other: `a` and `bc` look like `ab` and
    /// `c`. Parts written with this method cannot, whatever bytes they hold.
    pub fn push_part(&mut self, part: &[u8]) {
        self.push_decimal(part.len());
        self.push_bytes(b":");
        self.push_bytes(part);
        self.push_bytes(b",");
    }

    /// Appends what `write` appends, as one part (see [`push_part`](Self::push_part)).
    pub(crate) fn part_with<T>(&mut self, write: impl FnOnce(&mut Self) -> T) -> T {
        let start = self.len();
        let answer = write(self);
        let end = self.len();
        // The length is known only now: write it behind the part, then turn it to the front.
        self.push_decimal(end.saturating_sub(start));
        self.push_bytes(b":");
        let prefix = self.len() - end;
        if let Some(part) = self.as_mut_bytes().get_mut(start..) {
            part.rotate_right(prefix);
        }
        self.push_bytes(b",");
        answer
    }

    pub(crate) fn push_byte(&mut self, byte: u8) {
        self.push_bytes(&[byte]);
    }

    pub(crate) fn push_lower(&mut self, text: &[u8]) {
        let start = self.len();
        self.push_bytes(text);
        if let Some(pushed) = self.as_mut_bytes().get_mut(start..) {
            pushed.make_ascii_lowercase();
        }
    }

    fn push_decimal(&mut self, number: usize) {
        self.push_fmt(format_args!("{number}"));
    }

    pub(crate) fn push_fmt(&mut self, text: fmt::Arguments<'_>) {
        // A buffer cannot refuse to be written to; a `Display` that fails of itself leaves what it wrote.
        let _ = fmt::write(self, text);
    }

    /// The name so far.
    pub fn as_bytes(&self) -> &[u8] {
        if self.spilled.is_empty() { &self.inline[..self.len] } else { &self.spilled }
    }

    pub(crate) fn as_mut_bytes(&mut self) -> &mut [u8] {
        if self.spilled.is_empty() { &mut self.inline[..self.len] } else { &mut self.spilled }
    }

    /// The length in bytes.
    pub fn len(&self) -> usize {
        self.as_bytes().len()
    }

    /// Whether nothing has been written.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Empties the buffer and keeps what it has allocated.
    pub fn clear(&mut self) {
        self.truncate(0);
    }

    pub(crate) fn truncate(&mut self, len: usize) {
        if self.spilled.is_empty() {
            self.len = self.len.min(len);
        } else {
            self.spilled.truncate(len);
            if self.spilled.is_empty() {
                self.len = 0;
            }
        }
    }
}

impl Default for NameBuf {
    fn default() -> Self {
        Self::new()
    }
}

impl PartialEq for NameBuf {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for NameBuf {}

impl fmt::Write for NameBuf {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.push_str(text);
        Ok(())
    }
}

/// Shows the name as text, with `U+FFFD` for what is not UTF-8.
impl fmt::Display for NameBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.as_bytes().utf8_chunks() {
            f.write_str(chunk.valid())?;
            if !chunk.invalid().is_empty() {
                f.write_str("\u{fffd}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for NameBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NameBuf(\"{}\")", self.as_bytes().escape_ascii())
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use proptest::{prelude::*, test_runner::RngSeed};

    use super::*;

    #[test]
    fn short_names_stay_inline_and_long_ones_move_out() {
        let mut name = NameBuf::new();
        name.push_bytes(&[b'x'; 255]);
        name.push_str("y");
        assert_eq!((name.len(), name.spilled.capacity()), (256, 0));
        write!(name, "{}", 7).unwrap();
        assert_eq!(name.len(), 257);
        assert!(name.as_bytes().ends_with(b"xy7"));
        name.clear();
        assert!(name.is_empty());
        name.push_str("again");
        assert_eq!(name.as_bytes(), b"again");
    }

    #[test]
    fn parts_are_netstrings() {
        let mut name = NameBuf::new();
        name.push_part(b"ab");
        name.part_with(|name| name.push_str("0123456789"));
        name.push_part(b"");
        assert_eq!(name.as_bytes(), b"2:ab,10:0123456789,0:,");
    }

    #[test]
    fn shows_itself() {
        let mut name = NameBuf::new();
        name.push_bytes(b"a\xffb\"");
        assert_eq!(name.to_string(), "a\u{fffd}b\"");
        assert_eq!(format!("{name:?}"), r#"NameBuf("a\xffb\"")"#);
    }

    proptest! {
        #![proptest_config(ProptestConfig { rng_seed: RngSeed::Fixed(10), failure_persistence: None, ..Default::default() })]

        #[test]
        fn holds_what_was_written(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..8),
            cut in 0usize..600,
        ) {
            let mut name = NameBuf::new();
            pieces.iter().for_each(|piece| name.push_bytes(piece));
            let mut model = pieces.concat();
            prop_assert_eq!(name.as_bytes(), &model);
            name.truncate(cut);
            model.truncate(cut);
            name.push_bytes(b"end");
            model.extend_from_slice(b"end");
            prop_assert_eq!(name.as_bytes(), model);
        }

        #[test]
        fn part_with_writes_what_push_part_writes(before in "[a-z]{0,300}", part in "[a-z0-9:,]{0,300}") {
            let (mut one, mut other) = (NameBuf::new(), NameBuf::new());
            one.push_str(&before);
            one.push_part(part.as_bytes());
            other.push_str(&before);
            other.part_with(|name| name.push_str(&part));
            prop_assert_eq!(one, other);
        }
    }
}

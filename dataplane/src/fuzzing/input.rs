//! Structure out of arbitrary bytes.

use sockeye_ctl::human::is_unsafe;

/// Bytes to be taken one after another. At the end there are zeros without end, so that a prefix of an input is one
/// too.
pub(super) struct Input<'a>(pub(super) &'a [u8]);

impl<'a> Input<'a> {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// At most so many.
    pub(super) fn take(&mut self, most: usize) -> &'a [u8] {
        let (head, tail) = self.0.split_at(most.min(self.0.len()));
        self.0 = tail;
        head
    }

    pub(super) fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        let taken = self.take(N);
        bytes[..taken.len()].copy_from_slice(taken);
        bytes
    }

    pub(super) fn u8(&mut self) -> u8 {
        u8::from_le_bytes(self.array())
    }

    pub(super) fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    pub(super) fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    pub(super) fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// Bytes with their length before them.
    pub(super) fn bytes(&mut self) -> &'a [u8] {
        let length = self.u8();
        self.take(length.into())
    }

    /// The same as text.
    pub(super) fn text(&mut self) -> String {
        String::from_utf8_lossy(self.bytes()).into_owned()
    }
}

/// Panics unless a terminal and a page show the text as it is.
pub(super) fn assert_clean(text: &str, most: usize) {
    assert!(!text.chars().any(is_unsafe), "{text:?} is not clean");
    assert!(text.len() <= most, "{} bytes, and not {most}", text.len());
}

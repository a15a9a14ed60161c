//! Messages of DNS on their way to control: one after another, in memory that is kept.

use sockeye_bpf::records::{PayloadHead, PayloadRecord};
use zerocopy::IntoBytes;

const HEAD_WORDS: usize = size_of::<PayloadHead>() / 8;
/// Memory that is kept when they have been taken, words of 8 bytes: as much as a few hundred messages need.
const KEPT_WORDS: usize = 1 << 14;

/// Messages, in the order in which they came.
#[derive(Debug, Default)]
pub struct Messages {
    /// Each a head, and the message filled up to a whole word.
    words: Vec<u64>,
    count: usize,
}

impl Messages {
    /// Adds one.
    pub fn push(&mut self, record: &PayloadRecord<'_>) {
        let begin = self.words.len();
        self.words.resize(begin + HEAD_WORDS + record.message.len().div_ceil(8), 0);
        let room = self.words[begin..].as_mut_bytes();
        let (head, rest) = room.split_at_mut(HEAD_WORDS * 8);
        head.copy_from_slice(record.head.as_bytes());
        rest[..record.message.len()].copy_from_slice(record.message);
        self.count += 1;
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = PayloadRecord<'_>> {
        let mut rest = self.words.as_slice();
        std::iter::from_fn(move || {
            let record = PayloadRecord::parse(rest.as_bytes())?;
            rest = &rest[HEAD_WORDS + record.message.len().div_ceil(8)..];
            Some(record)
        })
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count
    }

    /// There are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Forgets all, and keeps the memory, unless that is much.
    pub fn clear(&mut self) {
        self.words.clear();
        self.count = 0;
        if self.words.capacity() > KEPT_WORDS {
            self.words = Vec::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use zerocopy::FromZeros;

    proptest! {
        #[test]
        fn what_is_put_in_comes_out(messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..1025), 0..20)) {
            let mut all = Messages::default();
            for (cookie, message) in (0..).zip(&messages) {
                let mut head = PayloadHead::new_zeroed();
                (head.cookie, head.copied) = (cookie, message.len() as u16);
                all.push(&PayloadRecord { head: &head, message });
            }
            prop_assert_eq!(all.len(), messages.len());
            let found: Vec<_> = all.iter().map(|record| record.message.to_vec()).collect();
            prop_assert_eq!(found, messages);
            prop_assert!(all.iter().map(|record| record.head.cookie).eq(0..all.len() as u64));
            all.clear();
            prop_assert!(all.is_empty() && all.iter().next().is_none());
        }
    }
}

//! Frames of first packets, and the stream that some of them carry in pieces (RFC 9000, 19.6).

use std::ops::Range;

use super::packet::{take, take_number};
use crate::names::tls::HELLO_MAX;

/// Pieces of the stream between which something is missing. Browsers shuffle a hello in about ten.
const PIECES_MAX: usize = 64;

const PADDING: u64 = 0;
const PING: u64 = 1;
const ACK: u64 = 2;
const ACK_WITH_ECN: u64 = 3;
const CRYPTO: u64 = 6;

/// The first bytes of a stream whose pieces come in any order.
#[derive(Debug, Default)]
pub(super) struct CryptoStream {
    bytes: Vec<u8>,
    /// What is there, in order; no two touch each other.
    pieces: Vec<Range<usize>>,
}

impl CryptoStream {
    /// What is there without a gap.
    pub(super) fn beginning(&self) -> &[u8] {
        match self.pieces.first() {
            Some(piece) if piece.start == 0 => &self.bytes[..piece.end],
            _ => &[],
        }
    }

    /// Takes what a packet carries, up to the first frame that no first packet has.
    pub(super) fn add_frames(&mut self, payload: &[u8]) {
        let mut rest = payload;
        while !rest.is_empty() && self.add_frame(&mut rest).is_some() {}
    }

    fn add_frame(&mut self, rest: &mut &[u8]) -> Option<()> {
        match take_number(rest)? {
            PADDING | PING => {}
            kind @ (ACK | ACK_WITH_ECN) => {
                let [_largest, _delay, ranges, _first] = [(); 4].map(|()| take_number(rest));
                // No packet has room for more than it has bytes.
                for _ in 0..ranges?.checked_mul(2)?.checked_add(if kind == ACK { 0 } else { 3 })? {
                    take_number(rest)?;
                }
            }
            CRYPTO => {
                let offset = take_number(rest)?;
                let length = usize::try_from(take_number(rest)?).ok()?;
                let piece = take(rest, length)?;
                self.add(usize::try_from(offset).ok()?, piece);
            }
            _ => return None,
        }
        Some(())
    }

    /// What is there already stays.
    fn add(&mut self, offset: usize, piece: &[u8]) {
        let piece = &piece[..piece.len().min(HELLO_MAX.saturating_sub(offset))];
        if piece.is_empty() || self.pieces.len() >= PIECES_MAX {
            return;
        }
        let new = offset..offset + piece.len();
        if self.bytes.len() < new.end {
            self.bytes.resize(new.end, 0);
        }
        // Of the pieces that the new one reaches, with it, one is made.
        let first = self.pieces.partition_point(|old| old.end < new.start);
        let behind = self.pieces.partition_point(|old| old.start <= new.end);
        let (mut at, mut joined) = (new.start, new.clone());
        for old in &self.pieces[first..behind] {
            if at < old.start {
                self.bytes[at..old.start].copy_from_slice(&piece[at - offset..old.start - offset]);
            }
            at = at.max(old.end);
            joined = joined.start.min(old.start)..joined.end.max(old.end);
        }
        if at < new.end {
            self.bytes[at..new.end].copy_from_slice(&piece[at - offset..]);
        }
        self.pieces.splice(first..behind, [joined]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Byte by byte is the same: what came first stays, and what is without a gap is told.
        #[test]
        fn pieces_come_in_any_order(
            pieces in prop::collection::vec((0usize..200, prop::collection::vec(any::<u8>(), 0..60)), 0..40)
        ) {
            let (mut stream, mut model) = (CryptoStream::default(), [None; 260]);
            for (offset, piece) in &pieces {
                stream.add(*offset, piece);
                for (slot, byte) in model[*offset..].iter_mut().zip(piece) {
                    slot.get_or_insert(*byte);
                }
                let expected: Vec<u8> = model.iter().map_while(|byte| *byte).collect();
                prop_assert_eq!(stream.beginning(), expected);
                prop_assert!(stream.pieces.windows(2).all(|pair| pair[0].end < pair[1].start));
            }
        }

        #[test]
        fn it_is_bounded(pieces in prop::collection::vec((0usize..3 * HELLO_MAX, 0usize..3000), 0..200), one in 0usize..2) {
            let mut stream = CryptoStream::default();
            for (offset, length) in pieces {
                stream.add(if one == 1 { offset | 1 } else { offset }, &vec![1; if one == 1 { 1 } else { length }]);
            }
            prop_assert!(stream.bytes.len() <= HELLO_MAX && stream.pieces.len() <= PIECES_MAX);
            stream.add(usize::MAX, &[1; 9]);
        }

        #[test]
        fn arbitrary_frames_never_panic(payload in prop::collection::vec(prop_oneof![0u8..8, any::<u8>()], 0..300)) {
            let mut stream = CryptoStream::default();
            stream.add_frames(&payload);
            prop_assert!(stream.bytes.len() <= HELLO_MAX);
        }
    }
}

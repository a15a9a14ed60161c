//! The other end of `tlv.rs`, for tests and for the fuzzer: a decoder that shares nothing with it, written from the
//! format that ntopng reads, and strict where ntopng is not.

/// What stands under a key.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Item {
    Number(u64),
    Float(f32),
    Text(String),
    /// Under a name instead of a number.
    Named(String, String),
}

/// Keys and values in order; a name has the key 0.
pub(crate) type Record = Vec<(u64, Item)>;

/// Records without the two bytes that begin a message. An error says where the bytes are none.
pub(crate) fn decode(bytes: &[u8]) -> Result<Vec<Record>, String> {
    let (mut rest, mut records, mut record) = (bytes, Vec::new(), Vec::new());
    while !rest.is_empty() {
        let at = bytes.len() - rest.len();
        match item(&mut rest) {
            Some(Some(item)) => record.push(item),
            // A record has at least one item.
            Some(None) if !record.is_empty() => records.push(std::mem::take(&mut record)),
            _ => return Err(format!("no item at byte {at}")),
        }
    }
    if record.is_empty() { Ok(records) } else { Err("the last record is not closed".into()) }
}

/// An item; nothing in it: the end of a record. `None` if it is neither.
fn item(rest: &mut &[u8]) -> Option<Option<(u64, Item)>> {
    const END: u8 = 1;
    let types = take(rest, 1)?[0];
    if types == END {
        return Some(None);
    }
    let (key_type, value_type) = (types >> 4, types & 15);
    Some(Some(match (key_type, value_type) {
        (11, 11) => (0, Item::Named(string(rest)?, string(rest)?)),
        // Keys have at most 32 bits.
        (2..=4, 2..=5) => (number(rest, key_type)?, Item::Number(number(rest, value_type)?)),
        (2..=4, 10) => (number(rest, key_type)?, Item::Float(f32::from_le_bytes(take(rest, 4)?.try_into().ok()?))),
        (2..=4, 11) => (number(rest, key_type)?, Item::Text(string(rest)?)),
        _ => return None,
    }))
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (head, tail) = rest.split_at_checked(length)?;
    *rest = tail;
    Some(head)
}

/// Big endian, of 1, 2, 4 or 8 bytes.
fn number(rest: &mut &[u8], number_type: u8) -> Option<u64> {
    let bytes = take(rest, 1 << (number_type - 2))?;
    Some(bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

fn string(rest: &mut &[u8]) -> Option<String> {
    let length = number(rest, 3)?;
    String::from_utf8(take(rest, usize::try_from(length).ok()?)?.to_vec()).ok()
}

/// The numbers under a key, added up.
pub(crate) fn sum(records: &[Record], key: u64) -> u64 {
    let numbers = records.iter().flatten().filter_map(|(known, item)| match item {
        Item::Number(number) if *known == key => Some(*number),
        _ => None,
    });
    numbers.sum()
}

//! What a cell carries: the payload with its overflow pages, and the record in it ("Record Format").

use std::fmt;

use wallaby::wal::PageNumber;

use super::{BtreePage, Cell, Encoding, Pages, u32_at, varint};

/// A value of a record.
#[derive(Clone, Debug, PartialEq)]
pub enum Column {
    /// Bytes.
    Blob(Vec<u8>),
    /// It lies, wholly or in part, in what is not here.
    Elsewhere {
        /// Whether it is a text.
        is_text: bool,
        /// Its bytes.
        bytes: u64,
    },
    /// An integer.
    Integer(i64),
    /// NULL; also the place of an INTEGER PRIMARY KEY, which is the rowid.
    Null,
    /// A floating-point number.
    Real(f64),
    /// A text. What is no text in its encoding is replaced.
    Text(String),
}

impl fmt::Display for Column {
    /// As in SQL, long texts and blobs cut.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Blob(bytes) => {
                write!(f, "x'")?;
                for byte in bytes.iter().take(BLOB_BYTES_SHOWN) {
                    write!(f, "{byte:02x}")?;
                }
                match bytes.len() {
                    0..=BLOB_BYTES_SHOWN => write!(f, "'"),
                    more => write!(f, "...' ({more} bytes)"),
                }
            }
            Self::Elsewhere { is_text, bytes } => {
                let what = if *is_text { "text" } else { "blob" };
                write!(f, "({what} of {bytes} bytes)")
            }
            Self::Integer(value) => write!(f, "{value}"),
            Self::Null => write!(f, "NULL"),
            Self::Real(value) => write!(f, "{value:?}"),
            Self::Text(text) => {
                let shown: String = text.chars().take(TEXT_CHARS_SHOWN).collect();
                let escaped: String = shown
                    .chars()
                    .flat_map(|c| {
                        let plain = (!c.is_control()).then_some(c);
                        let escaped = c.is_control().then(|| c.escape_default());
                        plain.into_iter().chain(escaped.into_iter().flatten())
                    })
                    .collect();
                let quoted = escaped.replace('\'', "''");
                if shown.len() == text.len() {
                    write!(f, "'{quoted}'")
                } else {
                    write!(f, "'{quoted}...' ({} bytes)", text.len())
                }
            }
        }
    }
}

/// The values of a record, of which `payload` may be only the beginning.
///
/// # Errors
///
/// What is wrong with the record.
pub fn columns(payload: &[u8], encoding: Encoding) -> Result<Vec<Column>, &'static str> {
    const BAD: &str = "the header of a record that does not end where it says";
    let (header_bytes, mut at) = varint(payload).ok_or(BAD)?;
    let header_bytes = usize::try_from(header_bytes).map_err(|_| BAD)?;
    let header = payload.get(..header_bytes).ok_or(BAD)?;
    let mut found = Vec::new();
    let mut body = header_bytes as u64;
    while at < header_bytes {
        let (serial, bytes) = header.get(at..).and_then(varint).ok_or(BAD)?;
        at += bytes;
        let length = length_of(serial).ok_or("a value of an unknown type")?;
        let end = body.checked_add(length).ok_or(BAD)?;
        let stored = usize::try_from(body)
            .ok()
            .zip(usize::try_from(end).ok())
            .and_then(|(begin, end)| payload.get(begin..end));
        found.push(column(serial, length, stored, encoding));
        body = end;
    }
    Ok(found)
}

/// How many bytes a value of this serial type takes.
const fn length_of(serial: u64) -> Option<u64> {
    Some(match serial {
        0 | 8 | 9 => 0,
        1..=4 => serial,
        5 => 6,
        6 | 7 => 8,
        10 | 11 => return None,
        blob if blob % 2 == 0 => (blob - 12) / 2,
        text => (text - 13) / 2,
    })
}

fn column(serial: u64, length: u64, stored: Option<&[u8]>, encoding: Encoding) -> Column {
    let Some(stored) = stored else {
        return Column::Elsewhere {
            is_text: serial % 2 == 1 && serial > 12,
            bytes: length,
        };
    };
    match serial {
        0 => Column::Null,
        8 => Column::Integer(0),
        9 => Column::Integer(1),
        7 => {
            let bits = stored
                .iter()
                .fold(0_u64, |bits, byte| bits << 8 | u64::from(*byte));
            Column::Real(f64::from_bits(bits))
        }
        1..=6 => {
            let negative = stored.first().is_some_and(|byte| byte & 0x80 != 0);
            let start = if negative { -1 } else { 0 };
            let fold = |value: i64, byte: &u8| value << 8 | i64::from(*byte);
            Column::Integer(stored.iter().fold(start, fold))
        }
        blob if blob % 2 == 0 => Column::Blob(stored.to_vec()),
        _ => Column::Text(text(stored, encoding)),
    }
}

fn text(stored: &[u8], encoding: Encoding) -> String {
    let wide = |unit: fn([u8; 2]) -> u16| {
        let (units, _) = stored.as_chunks::<2>();
        let units: Vec<u16> = units.iter().map(|bytes| unit(*bytes)).collect();
        String::from_utf16_lossy(&units)
    };
    match encoding {
        Encoding::Utf8 => String::from_utf8_lossy(stored).into_owned(),
        Encoding::Utf16Be => wide(u16::from_be_bytes),
        Encoding::Utf16Le => wide(u16::from_le_bytes),
    }
}

/// The payload of a cell with all of its overflow pages, which are told to `visit` as they are read.
///
/// # Errors
///
/// Why it cannot be read to its end.
pub fn whole_payload(
    pages: &dyn Pages,
    usable: usize,
    page: &BtreePage<'_>,
    cell: &Cell,
    mut visit: impl FnMut(PageNumber) -> Result<(), String>,
) -> Result<Vec<u8>, String> {
    let mut payload = page.local(cell).to_vec();
    let total = cell.payload_bytes.unwrap_or(0);
    let capacity = u64::from(pages.page_count().0) * usable as u64;
    if total > capacity.saturating_add(payload.len() as u64) {
        return Err(format!(
            "a payload of {total} bytes is more than the database holds"
        ));
    }
    let mut next = cell.overflow;
    while (payload.len() as u64) < total {
        let at = next.ok_or("the chain of overflow pages ends too early")?;
        visit(at)?;
        let image = pages.page(at)?;
        let following = u32_at(&image, 0).unwrap_or_default();
        let part = image.get(4..usable).unwrap_or_default();
        let left = usize::try_from(total - payload.len() as u64).unwrap_or(usize::MAX);
        if part.is_empty() {
            return Err("an overflow page without room".to_owned());
        }
        payload.extend_from_slice(&part[..part.len().min(left)]);
        next = PageNumber::new(following);
    }
    if next.is_some() && cell.overflow.is_some() {
        return Err("the chain of overflow pages does not end with the payload".to_owned());
    }
    Ok(payload)
}

const TEXT_CHARS_SHOWN: usize = 40;
const BLOB_BYTES_SHOWN: usize = 16;

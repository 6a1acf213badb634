//! JSON text exactly as Go's `encoding/json` writes it, because rqlite's clients see those bytes.
//!
//! | Value | Text |
//! |---|---|
//! | integer | all digits, the full signed 64-bit range |
//! | double, `1e-6 <= abs < 1e21`, or zero | fewest digits that read back equal, no exponent |
//! | any other finite double | the same digits with an exponent: `1e+21`, `1e-7` |
//! | infinity, NaN | none; the caller decides |
//! | `"` and `\` | `\"` and `\\` |
//! | backspace, form feed, newline, return, tab | `\b \f \n \r \t` |
//! | other controls below 0x20 | `\u00xx`, lower-case hex |
//! | `<`, `>`, `&`, U+2028, U+2029 | `\u003c`, `\u003e`, `\u0026`, `\u2028`, `\u2029` |
//! | a byte that is not part of valid UTF-8 | `\ufffd`, one for each byte |
//! | object made from a map | keys in byte order |

use std::io::Write;

use serde_json::Value;

/// Appends a signed integer.
pub fn integer(out: &mut Vec<u8>, value: i64) {
    write!(out, "{value}").expect("writing to memory does not fail");
}

/// Appends an unsigned integer.
pub fn unsigned(out: &mut Vec<u8>, value: u64) {
    write!(out, "{value}").expect("writing to memory does not fail");
}

/// Appends a double. JSON has no text for infinities and NaN; those are written as `null`, and a
/// caller to whom the difference matters looks first.
pub fn number(out: &mut Vec<u8>, value: f64) {
    let size = value.abs();
    if !value.is_finite() {
        out.extend_from_slice(b"null");
    } else if size == 0.0 || (1e-6..1e21).contains(&size) {
        // Rust's plain notation is Go's: shortest digits, padded with zeros, the sign of -0 kept.
        write!(out, "{value}").expect("writing to memory does not fail");
    } else {
        let text = format!("{value:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let sign = if exponent.starts_with('-') { "" } else { "+" };
        write!(out, "{digits}e{sign}{exponent}").expect("writing to memory does not fail");
    }
}

/// Appends a JSON string.
pub fn string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    escaped(out, text.as_bytes());
    out.push(b'"');
}

/// Appends a JSON string made from bytes that need not be valid UTF-8.
pub fn text(out: &mut Vec<u8>, bytes: &[u8]) {
    out.push(b'"');
    for chunk in bytes.utf8_chunks() {
        escaped(out, chunk.valid().as_bytes());
        for _ in chunk.invalid() {
            out.extend_from_slice(b"\\ufffd");
        }
    }
    out.push(b'"');
}

/// Copies runs that need no escape as they are; `bytes` is valid UTF-8.
fn escaped(out: &mut Vec<u8>, bytes: &[u8]) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut copied = 0;
    for (at, &byte) in bytes.iter().enumerate() {
        let plain = byte >= 0x20 && !matches!(byte, b'"' | b'\\' | b'<' | b'>' | b'&' | 0xe2);
        if plain {
            continue;
        }
        let separator = if byte == 0xe2 {
            match bytes.get(at + 1..at + 3) {
                Some([0x80, 0xa8]) => Some(b'8'),
                Some([0x80, 0xa9]) => Some(b'9'),
                _ => continue,
            }
        } else {
            None
        };
        out.extend_from_slice(&bytes[copied..at]);
        copied = at + 1;
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
            0x08 => out.extend_from_slice(b"\\b"),
            0x0c => out.extend_from_slice(b"\\f"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            _ => {
                if let Some(last) = separator {
                    out.extend_from_slice(b"\\u202");
                    out.push(last);
                    copied = at + 3;
                } else {
                    out.extend_from_slice(b"\\u00");
                    out.push(HEX[usize::from(byte >> 4)]);
                    out.push(HEX[usize::from(byte & 15)]);
                }
            }
        }
    }
    out.extend_from_slice(&bytes[copied..]);
}

/// Appends a tree, its objects' keys in byte order as Go writes a map. For the status pages; query
/// results are written without a tree.
pub fn tree(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Null => out.extend_from_slice(b"null"),
        Value::Bool(value) => boolean(out, *value),
        Value::Number(value) => out.extend_from_slice(value.to_string().as_bytes()),
        Value::String(value) => string(out, value),
        Value::Array(items) => {
            out.push(b'[');
            for (position, item) in items.iter().enumerate() {
                if position > 0 {
                    out.push(b',');
                }
                tree(out, item);
            }
            out.push(b']');
        }
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.iter().collect();
            fields.sort_unstable_by_key(|(name, _)| *name);
            out.push(b'{');
            for (position, (name, value)) in fields.into_iter().enumerate() {
                if position > 0 {
                    out.push(b',');
                }
                string(out, name);
                out.push(b':');
                tree(out, value);
            }
            out.push(b'}');
        }
    }
}

/// Appends `true` or `false`.
pub fn boolean(out: &mut Vec<u8>, value: bool) {
    out.extend_from_slice(if value { b"true" } else { b"false" });
}

/// Lays compact JSON out with four spaces per level, as `?pretty` asks. Empty objects and arrays
/// stay on one line. The input is our own output, hence well-formed; anything else comes back
/// laid out strangely but without a panic.
#[must_use]
pub fn indent(compact: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(compact.len() * 2);
    let (mut depth, mut in_string, mut escape) = (0_usize, false, false);
    let mut just_opened = false;
    for &byte in compact {
        if in_string {
            out.push(byte);
            in_string = escape || byte != b'"';
            escape = !escape && byte == b'\\';
            continue;
        }
        let closes = matches!(byte, b'}' | b']');
        if just_opened && !closes {
            line(&mut out, depth);
        }
        if closes {
            depth = depth.saturating_sub(1);
            if !just_opened {
                line(&mut out, depth);
            }
        }
        just_opened = matches!(byte, b'{' | b'[');
        out.push(byte);
        match byte {
            b'"' => in_string = true,
            b'{' | b'[' => depth += 1,
            b',' => line(&mut out, depth),
            b':' => out.push(b' '),
            _ => {}
        }
    }
    out
}

fn line(out: &mut Vec<u8>, depth: usize) {
    out.push(b'\n');
    for _ in 0..depth {
        out.extend_from_slice(b"    ");
    }
}

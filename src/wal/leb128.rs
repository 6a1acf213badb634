//! Numbers in as many bytes as they need: LEB128, 7 bits in a byte, the lowest first, and bit 7 set
//! where more follow. Always in the fewest bytes, so that one number has one form.

pub(super) fn put(bytes: &mut Vec<u8>, mut number: u32) {
    while number >= 0x80 {
        bytes.push(0x80 | low_bits(number));
        number >>= 7;
    }
    bytes.push(low_bits(number));
}

fn low_bits(number: u32) -> u8 {
    u8::try_from(number & 0x7f).expect("seven bits")
}

/// Takes a number off the beginning, of at most so many bytes; what is wrong if there is none.
pub(super) fn take(bytes: &mut &[u8], bytes_max: u32) -> Result<u32, &'static str> {
    let mut number = 0;
    for at in 0..bytes_max {
        let (first, rest) = bytes.split_first().ok_or("cut short")?;
        *bytes = rest;
        let (bits, shift) = (u32::from(first & 0x7f), 7 * at);
        if bits.leading_zeros() < shift {
            return Err(TOO_LARGE);
        }
        number |= bits << shift;
        if first & 0x80 == 0 {
            let is_padded = *first == 0 && at > 0;
            return if is_padded {
                Err("a number with more bytes than it needs")
            } else {
                Ok(number)
            };
        }
    }
    Err(TOO_LARGE)
}

/// What any number of 32 bits needs at most.
pub(super) const BYTES_MAX: u32 = 5;
const TOO_LARGE: &str = "a number is too large";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back_and_nothing_else_is_taken() {
        for number in [0, 1, 0x7f, 0x80, 0x3fff, 0x4000, 1 << 21, 1 << 28, u32::MAX] {
            let mut bytes = Vec::new();
            put(&mut bytes, number);
            assert_eq!(take(&mut &bytes[..], BYTES_MAX), Ok(number));
            let needed = u32::try_from(bytes.len()).unwrap();
            assert!(take(&mut &bytes[..], needed - 1).is_err());
            assert_eq!(
                take(&mut &bytes[..bytes.len() - 1], BYTES_MAX),
                Err("cut short")
            );
            if let Some(last) = bytes.last_mut() {
                *last |= 0x80;
            }
            bytes.push(0);
            assert!(take(&mut &bytes[..], BYTES_MAX).is_err());
        }
        let too_large = [0xff, 0xff, 0xff, 0xff, 0x10];
        assert_eq!(take(&mut &too_large[..], BYTES_MAX), Err(TOO_LARGE));
    }
}

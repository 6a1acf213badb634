//! Taking fixed-width fields off a slice, every length checked first.

use super::codec::CodecError;

/// A slice and how far it has been read.
pub(super) struct Fields<'a> {
    what: &'static str,
    bytes: &'a [u8],
    offset: usize,
}

impl<'a> Fields<'a> {
    /// Starts at the beginning of `bytes`; `what` names the format in errors.
    pub(super) fn new(what: &'static str, bytes: &'a [u8]) -> Self {
        Self {
            what,
            bytes,
            offset: 0,
        }
    }

    pub(super) fn remaining(&self) -> usize {
        self.bytes.len() - self.offset
    }

    /// The error "this field cannot be": `length` bytes ago stood something that is not allowed.
    pub(super) fn invalid(&self, length: usize) -> CodecError {
        CodecError::Invalid {
            what: self.what,
            offset: self.offset.saturating_sub(length),
        }
    }

    pub(super) fn slice(&mut self, length: usize) -> Result<&'a [u8], CodecError> {
        let rest = self.bytes.get(self.offset..).unwrap_or(&[]);
        let Some(taken) = rest.get(..length) else {
            return Err(CodecError::Truncated {
                what: self.what,
                offset: self.offset,
            });
        };
        self.offset += length;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], CodecError> {
        let mut array = [0; N];
        array.copy_from_slice(self.slice(N)?);
        Ok(array)
    }

    pub(super) fn u8(&mut self) -> Result<u8, CodecError> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    pub(super) fn u16(&mut self) -> Result<u16, CodecError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(super) fn u32(&mut self) -> Result<u32, CodecError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, CodecError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(super) fn u128(&mut self) -> Result<u128, CodecError> {
        Ok(u128::from_le_bytes(self.array()?))
    }

    /// A byte that is 0 or 1; anything else is an error, so that no bit of a format is ignored.
    pub(super) fn flag(&mut self) -> Result<bool, CodecError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(self.invalid(1)),
        }
    }

    /// Reserved bytes: zero, or written by a version we do not know.
    pub(super) fn zeros(&mut self, length: usize) -> Result<(), CodecError> {
        if self.slice(length)?.iter().any(|byte| *byte != 0) {
            return Err(self.invalid(length));
        }
        Ok(())
    }

    /// A count of things of at least `each_bytes_min` bytes, refused if they cannot be there:
    /// no memory is set aside on the word of a damaged length.
    pub(super) fn count(&mut self, each_bytes_min: usize) -> Result<usize, CodecError> {
        let count = self.u32()? as usize;
        if count > self.remaining() / each_bytes_min {
            return Err(self.invalid(4));
        }
        Ok(count)
    }

    pub(super) fn string(&mut self, length: usize) -> Result<String, CodecError> {
        let bytes = self.slice(length)?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(self.invalid(length)),
        }
    }

    /// Nothing may follow the last field.
    pub(super) fn end(self) -> Result<(), CodecError> {
        if self.remaining() > 0 {
            Err(self.invalid(0))
        } else {
            Ok(())
        }
    }
}

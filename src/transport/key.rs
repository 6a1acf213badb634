//! The cluster key: the one secret that the nodes of a cluster share.
//!
//! Text form, one line: `wallaby-key-1-` followed by 48 characters of base64url (RFC 4648 section
//! 5) without padding, which are these 36 bytes:
//!
//! | Offset | Size | Field | Meaning |
//! |---|---|---|---|
//! | 0 | 32 | key | random |
//! | 32 | 4 | checksum | CRC-32 of `wallaby-key-1-` and the key, little-endian |
//!
//! The checksum is there to tell a typing error from a wrong key. A reader refuses every text that
//! is not exactly this; white space around it is ignored.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hkdf;

use super::TransportError;

/// The secret from which every node derives the cluster's certificate authority.
#[derive(Clone, Eq, PartialEq)]
pub struct ClusterKey([u8; KEY_BYTES]);

impl ClusterKey {
    /// A new key from the operating system's random numbers.
    ///
    /// # Errors
    /// [`TransportError::Key`] if the operating system has none to give.
    pub fn generate() -> Result<Self, TransportError> {
        let mut key = [0; KEY_BYTES];
        getrandom::fill(&mut key)
            .map_err(|error| TransportError::key(format!("no random numbers: {error}")))?;
        Ok(Self(key))
    }

    /// Reads the text form.
    ///
    /// # Errors
    /// [`TransportError::Key`] says what is wrong with the text, without repeating it.
    pub fn parse(text: &str) -> Result<Self, TransportError> {
        let text = text.trim();
        let Some(rest) = text.strip_prefix(FAMILY) else {
            let what = format!("it does not begin with `{FAMILY}`");
            return Err(TransportError::key(what));
        };
        let Some((version, code)) = rest.split_once('-') else {
            return Err(TransportError::key("it ends before the key itself"));
        };
        if version != VERSION {
            let what = "its version is not supported; this program reads version 1";
            return Err(TransportError::key(what));
        }
        if code.len() != CODE_CHARACTERS {
            let length = code.len();
            let what = format!("{CODE_CHARACTERS} characters must follow the prefix, not {length}");
            return Err(TransportError::key(what));
        }
        let bytes = URL_SAFE_NO_PAD
            .decode(code)
            .map_err(|_| TransportError::key("it has a character that is not base64url"))?;
        let (Some(key), Some(checksum)) = (
            bytes.first_chunk::<KEY_BYTES>(),
            bytes.last_chunk::<CHECKSUM_BYTES>(),
        ) else {
            return Err(TransportError::key("it is too short"));
        };
        if u32::from_le_bytes(*checksum) != checksum_of(key) {
            return Err(TransportError::key("its checksum is wrong: mistyped?"));
        }
        Ok(Self(*key))
    }

    /// The text form. It is the secret: it belongs in a file of mode 0600 and nowhere else.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut bytes = self.0.to_vec();
        bytes.extend_from_slice(&checksum_of(&self.0).to_le_bytes());
        format!("{FAMILY}{VERSION}-{}", URL_SAFE_NO_PAD.encode(bytes))
    }

    /// Reads a key file. Warns if others than the owner may read it: some ways of handing secrets
    /// to a container cannot do better, so it is not refused.
    ///
    /// # Errors
    /// [`TransportError::Key`] names the file and what is wrong.
    pub fn read(path: &Path) -> Result<Self, TransportError> {
        let failed = |reason: &dyn fmt::Display| {
            TransportError::key(format!("cannot read {}: {reason}", path.display()))
        };
        let file = File::open(path).map_err(|error| failed(&error))?;
        let metadata = file.metadata().map_err(|error| failed(&error))?;
        if metadata.permissions().mode() & 0o077 != 0 {
            let path = path.display();
            tracing::warn!(%path, "others may read the cluster key; set its mode to 0600");
        }
        let mut text = String::new();
        file.take(FILE_BYTES_MAX)
            .read_to_string(&mut text)
            .map_err(|error| failed(&error))?;
        Self::parse(&text).map_err(|error| match error {
            TransportError::Key { what } => {
                TransportError::key(format!("{}: {what}", path.display()))
            }
            other => other,
        })
    }

    /// Writes a new key file of mode 0600 and syncs it. A file that exists is left alone: it could
    /// be the key of a running cluster.
    ///
    /// # Errors
    /// [`TransportError::Key`] names the file and what is wrong.
    pub fn write_new(&self, path: &Path) -> Result<(), TransportError> {
        let write = || {
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(path)?;
            file.write_all(self.to_text().as_bytes())?;
            file.write_all(b"\n")?;
            file.sync_all()
        };
        write().map_err(|error| {
            TransportError::key(format!("cannot write {}: {error}", path.display()))
        })
    }

    /// 32 bytes that only holders of the key can compute, different for each purpose.
    pub(super) fn derive(&self, purpose: &[&[u8]]) -> [u8; 32] {
        derive(&self.0, purpose)
    }
}

impl fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterKey(hidden)")
    }
}

/// HKDF (RFC 5869) with SHA-256.
pub(super) fn derive(secret: &[u8], purpose: &[&[u8]]) -> [u8; 32] {
    let mut derived = [0; 32];
    hkdf::Salt::new(hkdf::HKDF_SHA256, b"wallaby cluster key 1")
        .extract(secret)
        .expand(purpose, hkdf::HKDF_SHA256)
        .and_then(|material| material.fill(&mut derived))
        .expect("32 bytes are what one round of HKDF-SHA256 gives");
    derived
}

fn checksum_of(key: &[u8; KEY_BYTES]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(FAMILY.as_bytes());
    hasher.update(VERSION.as_bytes());
    hasher.update(b"-");
    hasher.update(key);
    hasher.finalize()
}

const FAMILY: &str = "wallaby-key-";
const VERSION: &str = "1";
const KEY_BYTES: usize = 32;
const CHECKSUM_BYTES: usize = 4;
/// 36 bytes at 6 bits a character.
const CODE_CHARACTERS: usize = (KEY_BYTES + CHECKSUM_BYTES) * 8 / 6;
/// Far more than a key and some white space, far less than a file given by mistake.
const FILE_BYTES_MAX: u64 = 4096;

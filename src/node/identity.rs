//! Who this node is: the file `identity` in the data directory.
//!
//! | Offset | Size | Field | Meaning |
//! |---|---|---|---|
//! | 0 | 8 | magic | `8E 57 4C 42 49 44 0A 1A` |
//! | 8 | 4 | version | 1 |
//! | 12 | 4 | name length | bytes, at most 1024 |
//! | 16 | 8 | Raft id | random, never zero, never reused |
//! | 24 | 16 | cluster id | zero while the node belongs to no cluster |
//! | 40 | 4 | flags | bit 0: this node drew the cluster id; the others are zero |
//! | 44 | n | name | UTF-8 |
//! | 44+n | 4 | CRC-32 | of everything before it |
//!
//! Integers are little-endian. The file is replaced as a whole (write aside, fsync, rename, fsync
//! of the directory), so damage is never the trace of a crash and is refused.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::error::{Error, REBUILD};
use crate::planted::{self, Bug};
use crate::wal::ClusterId;

/// The durable identity of a node.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Identity {
    /// Drawn when the data directory was created.
    pub(crate) raft_id: u64,
    /// The cluster this node belongs to, once it does.
    pub(crate) cluster: Option<ClusterId>,
    /// Whether this node drew the cluster id. Only such a node may initialise Raft: one that was
    /// taken into a cluster must wait for its leader, whatever flags it is started with.
    pub(crate) founder: bool,
    /// `-node-id`, or the advertised Raft address of the first start.
    pub(crate) name: String,
}

impl Identity {
    /// Reads the identity of the directory, or draws one. A given name must match a stored one.
    pub(crate) fn load_or_create(
        dir: &Path,
        name: Option<&str>,
        fallback: &str,
    ) -> Result<Self, Error> {
        let path = dir.join(FILE);
        match fs::read(&path) {
            Ok(bytes) => {
                let identity = Self::decode(&bytes, &path)?;
                match name {
                    Some(name) if name != identity.name => Err(Error::Configuration(format!(
                        "{} belongs to node {:?}, but -node-id says {name:?}; start it with its \
                         own name or give the new node a directory of its own",
                        dir.display(),
                        identity.name
                    ))),
                    _ => Ok(identity),
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let identity = Self {
                    raft_id: if planted::is(Bug::RaftIdReused) {
                        u64::from(crc32fast::hash(name.unwrap_or(fallback).as_bytes())) + 1
                    } else {
                        random_u64()?
                    },
                    cluster: None,
                    founder: false,
                    name: name.unwrap_or(fallback).to_owned(),
                };
                identity.save(dir)?;
                Ok(identity)
            }
            Err(error) => Err(Error::io(format!("read {}", path.display()))(error)),
        }
    }

    /// Makes the identity durable.
    pub(crate) fn save(&self, dir: &Path) -> Result<(), Error> {
        write_durably(dir, FILE, &self.encode())
    }

    fn encode(&self) -> Vec<u8> {
        let name = self.name.as_bytes();
        let mut bytes = Vec::with_capacity(HEAD_BYTES + name.len() + 4);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        let name_bytes = u32::try_from(name.len()).expect("names are at most 1024 bytes");
        bytes.extend_from_slice(&name_bytes.to_le_bytes());
        bytes.extend_from_slice(&self.raft_id.to_le_bytes());
        bytes.extend_from_slice(&self.cluster.map_or(0, |id| id.0).to_le_bytes());
        bytes.extend_from_slice(&u32::from(self.founder).to_le_bytes());
        bytes.extend_from_slice(name);
        let crc = crc32fast::hash(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8], file: &Path) -> Result<Self, Error> {
        let corrupt = |what: &str| Error::Corrupt {
            what: what.to_owned(),
            file: file.to_owned(),
            advice: REBUILD,
        };
        if bytes.len() < HEAD_BYTES + 4 || bytes[..8] != MAGIC {
            return Err(corrupt("not an identity file"));
        }
        let version = u32::from_le_bytes(bytes[8..12].try_into().expect("4 bytes"));
        if version != VERSION {
            return Err(Error::Configuration(format!(
                "{} has version {version}, this program knows {VERSION}; use the program that \
                 wrote it",
                file.display()
            )));
        }
        let (body, crc) = bytes.split_at(bytes.len() - 4);
        if crc32fast::hash(body).to_le_bytes() != crc {
            return Err(corrupt("wrong checksum"));
        }
        let name_bytes = u32::from_le_bytes(bytes[12..16].try_into().expect("4 bytes"));
        let name = &body[HEAD_BYTES..];
        if name.len() as u64 != u64::from(name_bytes) || name.len() > NAME_BYTES_MAX {
            return Err(corrupt("wrong length of the name"));
        }
        let name = String::from_utf8(name.to_vec()).map_err(|_| corrupt("name is not UTF-8"))?;
        let raft_id = u64::from_le_bytes(bytes[16..24].try_into().expect("8 bytes"));
        let cluster = u128::from_le_bytes(bytes[24..40].try_into().expect("16 bytes"));
        let cluster = (cluster != 0).then_some(ClusterId(cluster));
        let founder = match u32::from_le_bytes(bytes[40..44].try_into().expect("4 bytes")) {
            0 => false,
            1 => true,
            _ => return Err(corrupt("unknown flags")),
        };
        Ok(Self {
            raft_id,
            cluster,
            founder,
            name,
        })
    }
}

/// A random number that is not zero.
pub(crate) fn random_u64() -> Result<u64, Error> {
    loop {
        let number = getrandom::u64().map_err(|error| {
            Error::io("draw a random number")(io::Error::other(error.to_string()))
        })?;
        if number != 0 {
            return Ok(number);
        }
    }
}

/// Replaces a small file as a whole: after a crash it has its old or its new content.
pub(crate) fn write_durably(dir: &Path, name: &str, bytes: &[u8]) -> Result<(), Error> {
    let path = dir.join(name);
    let aside: PathBuf = dir.join(format!("{name}.tmp"));
    let write = || -> io::Result<()> {
        let mut options = File::options();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(&aside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&aside, &path)?;
        File::open(dir)?.sync_all()
    };
    write().map_err(Error::io(format!("write {}", path.display())))
}

const FILE: &str = "identity";
const MAGIC: [u8; 8] = [0x8e, b'W', b'L', b'B', b'I', b'D', b'\n', 0x1a];
const VERSION: u32 = 1;
const HEAD_BYTES: usize = 44;

/// The longest name of a node.
pub(crate) const NAME_BYTES_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Identity {
        Identity {
            raft_id: 0x0102_0304,
            cluster: Some(ClusterId(7)),
            founder: true,
            name: "n1".to_owned(),
        }
    }

    #[test]
    fn an_identity_reads_as_it_was_written() {
        let read = Identity::decode(&example().encode(), Path::new("identity")).unwrap();
        assert_eq!(read, example());
    }

    #[test]
    fn every_truncation_and_every_flipped_bit_is_refused() {
        let bytes = example().encode();
        for length in 0..bytes.len() {
            assert!(Identity::decode(&bytes[..length], Path::new("identity")).is_err());
        }
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(
                Identity::decode(&damaged, Path::new("identity")).is_err(),
                "bit {bit}"
            );
        }
    }
}

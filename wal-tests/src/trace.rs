//! What a process did to the files of one directory, call by call.
//!
//! A trace is a sequence of events, each written whole before the call that it stands for returns:
//! whatever the process has told anybody, the trace shows what it had done to its files before.
//! So the length of the trace at the moment of an acknowledgement is the moment itself.

use std::io;

/// One successful call, or a failed sync. Paths are relative to the directory; files that have a
/// name are known by their inode number from the first time they are opened.
#[derive(Clone, Debug, Eq, PartialEq)]
#[allow(missing_docs)] // The fields are the arguments of the calls.
pub enum Event {
    /// A file that was there before was opened.
    Known { path: String, inode: u64 },
    /// A file was made.
    Create { path: String, inode: u64 },
    /// Bytes were written.
    Write {
        inode: u64,
        offset: u64,
        bytes: Vec<u8>,
    },
    /// A file got another length.
    Resize { inode: u64, length: u64 },
    /// A file was synced, or the attempt failed.
    Sync { inode: u64, failed: bool },
    /// A directory was made.
    MakeDir { path: String },
    /// A name was replaced by another one.
    Rename { from: String, to: String },
    /// A name was removed.
    Remove { path: String },
    /// A directory was synced, or the attempt failed.
    SyncDir { path: String, failed: bool },
    /// A call failed because it was told to.
    Fault { call: String },
}

impl Event {
    /// Whether a crash after this event can leave anything that a crash before it could not.
    #[must_use]
    pub const fn changes_the_disk(&self) -> bool {
        !matches!(self, Self::Known { .. } | Self::Fault { .. })
    }

    /// The event for messages: how many bytes, but not which.
    #[must_use]
    pub fn brief(&self) -> String {
        match self {
            Self::Write {
                inode,
                offset,
                bytes,
            } => format!("Write {} bytes at {offset} of inode {inode}", bytes.len()),
            other => format!("{other:?}"),
        }
    }

    /// Appends the event to a trace.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut writer = Writer(out);
        match self {
            Self::Known { path, inode } => writer.tag(0).text(path).number(*inode),
            Self::Create { path, inode } => writer.tag(1).text(path).number(*inode),
            Self::Write {
                inode,
                offset,
                bytes,
            } => writer.tag(2).number(*inode).number(*offset).bytes(bytes),
            Self::Resize { inode, length } => writer.tag(3).number(*inode).number(*length),
            Self::Sync { inode, failed } => writer.tag(4).number(*inode).number((*failed).into()),
            Self::MakeDir { path } => writer.tag(5).text(path),
            Self::Rename { from, to } => writer.tag(6).text(from).text(to),
            Self::Remove { path } => writer.tag(7).text(path),
            Self::SyncDir { path, failed } => writer.tag(8).text(path).number((*failed).into()),
            Self::Fault { call } => writer.tag(9).text(call),
        };
    }

    fn decode(reader: &mut Reader<'_>) -> Option<Self> {
        Some(match reader.take(1)?[0] {
            0 => Self::Known {
                path: reader.text()?,
                inode: reader.number()?,
            },
            1 => Self::Create {
                path: reader.text()?,
                inode: reader.number()?,
            },
            2 => Self::Write {
                inode: reader.number()?,
                offset: reader.number()?,
                bytes: reader.bytes()?.to_vec(),
            },
            3 => Self::Resize {
                inode: reader.number()?,
                length: reader.number()?,
            },
            4 => Self::Sync {
                inode: reader.number()?,
                failed: reader.number()? != 0,
            },
            5 => Self::MakeDir {
                path: reader.text()?,
            },
            6 => Self::Rename {
                from: reader.text()?,
                to: reader.text()?,
            },
            7 => Self::Remove {
                path: reader.text()?,
            },
            8 => Self::SyncDir {
                path: reader.text()?,
                failed: reader.number()? != 0,
            },
            9 => Self::Fault {
                call: reader.text()?,
            },
            _ => return None,
        })
    }
}

/// A trace as it is read back: the events, and the length of the trace after each of them.
///
/// # Errors
///
/// When the bytes are no trace. One that a kill has cut short ends with its last whole event.
pub fn decode(bytes: &[u8]) -> io::Result<Vec<(Event, u64)>> {
    let mut reader = Reader { bytes, at: 0 };
    let mut events = Vec::new();
    while reader.at < bytes.len() {
        let tag = bytes[reader.at];
        if tag > LAST_TAG {
            let what = format!("no event begins with {tag} at {}", reader.at);
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        let Some(event) = Event::decode(&mut reader) else {
            break;
        };
        events.push((event, reader.at as u64));
    }
    Ok(events)
}

const LAST_TAG: u8 = 9;

struct Writer<'a>(&'a mut Vec<u8>);

impl Writer<'_> {
    fn tag(&mut self, tag: u8) -> &mut Self {
        self.0.push(tag);
        self
    }

    fn number(&mut self, number: u64) -> &mut Self {
        self.0.extend_from_slice(&number.to_le_bytes());
        self
    }

    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.number(bytes.len() as u64).0.extend_from_slice(bytes);
        self
    }

    fn text(&mut self, text: &str) -> &mut Self {
        self.bytes(text.as_bytes())
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let taken = self.bytes.get(self.at..self.at.checked_add(count)?)?;
        self.at += count;
        Some(taken)
    }

    fn number(&mut self) -> Option<u64> {
        let bytes = self.take(8)?.try_into().ok()?;
        Some(u64::from_le_bytes(bytes))
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let count = usize::try_from(self.number()?).ok()?;
        self.take(count)
    }

    fn text(&mut self) -> Option<String> {
        String::from_utf8(self.bytes()?.to_vec()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_read_back_as_it_was_written_and_up_to_where_it_was_cut() {
        let text = |text: &str| text.to_owned();
        let events = [
            Event::Known {
                path: text("log/1"),
                inode: 7,
            },
            Event::Create {
                path: text("a"),
                inode: 8,
            },
            Event::Write {
                inode: 8,
                offset: 512,
                bytes: vec![1, 2, 3],
            },
            Event::Resize {
                inode: 8,
                length: 9,
            },
            Event::Sync {
                inode: 8,
                failed: true,
            },
            Event::MakeDir { path: text("log") },
            Event::Rename {
                from: text("a"),
                to: text("b"),
            },
            Event::Remove { path: text("b") },
            Event::SyncDir {
                path: text(""),
                failed: false,
            },
            Event::Fault {
                call: text("fsync"),
            },
        ];
        let mut bytes = Vec::new();
        let mut ends = Vec::new();
        for event in &events {
            event.encode(&mut bytes);
            ends.push(bytes.len());
        }
        for cut in 0..=bytes.len() {
            let found = decode(&bytes[..cut]).unwrap();
            let whole = ends.iter().filter(|end| **end <= cut).count();
            assert_eq!(found.len(), whole, "cut at {cut}");
            for (index, (event, end)) in found.iter().enumerate() {
                assert_eq!((event, *end), (&events[index], ends[index] as u64));
            }
        }
        assert!(decode(&[LAST_TAG + 1]).is_err());
    }
}

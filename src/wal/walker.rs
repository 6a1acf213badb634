//! Walks the frames of a WAL, yields whole transactions, and says why it stopped.
//!
//! A WAL has no length field: it ends at the first frame that does not belong to it. What SQLite
//! would recover from a file is exactly the transactions yielded here ("The Checkpoint Algorithm"
//! and "Reader Algorithm" in the file format document; `walIndexRecover`).

use super::format::{
    ByteOrder, Checksum, FRAME_HEADER_BYTES, FrameHeader, WAL_HEADER_BYTES, WalError, WalHeader,
    frame_bytes, frame_offset,
};
use super::page::{PageCount, PageNumber};
use crate::planted::{self, Bug};

/// One committed transaction of a WAL.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Transaction {
    /// The number of its first frame, counted from 1.
    pub frame_first: u32,
    /// Its frames as they were written; a page can occur twice, and then the later frame counts.
    pub frames: Vec<TransactionFrame>,
    /// How many pages the database has after it.
    pub page_count: PageCount,
}

/// A frame within a [`Transaction`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TransactionFrame {
    /// The page that was written.
    pub page: PageNumber,
    /// Where the frame begins in the WAL, in bytes; its page is 24 bytes further.
    pub offset: u64,
}

/// Why a walk came to its end. None of these is an error: each is how a WAL can end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Stop {
    /// The frame's checksum does not continue the chain: a torn or damaged frame.
    ChecksumMismatch,
    /// The bytes end exactly where a frame would begin.
    EndOfBytes,
    /// The frame belongs to an earlier generation of the WAL, which was restarted since.
    SaltMismatch,
    /// The bytes end within the frame.
    ShortFrame,
    /// The frame names page 0: space that was reserved and never written.
    ZeroPage,
}

/// What a walk found, and where it ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct End {
    /// Why it went no further.
    pub stop: Stop,
    /// The last frame that belongs to a whole transaction: SQLite's `mxFrame`. 0 if there is none.
    pub frame_committed: u32,
    /// How many valid frames follow it without a commit frame; SQLite ignores them.
    pub frames_open: u32,
    /// The checksum of `frame_committed`, which the next frame written must continue.
    pub checksum: Checksum,
    /// The size of the database after the last whole transaction, if there is one.
    pub page_count: Option<PageCount>,
}

/// Checks one frame after the other and groups them into transactions. Needs no more memory than
/// the frame list of the transaction it is in, so it can follow a file of any size.
#[derive(Clone, Debug)]
pub struct Walker {
    header: WalHeader,
    checksum: Checksum,
    open: Vec<TransactionFrame>,
    committed: End,
}

impl Walker {
    /// A walker that stands before the first frame.
    #[must_use]
    pub fn new(header: WalHeader) -> Self {
        let checksum = header.checksum();
        Self {
            header,
            checksum,
            open: Vec::new(),
            committed: End {
                stop: Stop::EndOfBytes,
                frame_committed: 0,
                frames_open: 0,
                checksum,
                page_count: None,
            },
        }
    }

    /// The header it was made with.
    #[must_use]
    pub const fn header(&self) -> &WalHeader {
        &self.header
    }

    /// The number of the next frame, counted from 1.
    #[must_use]
    pub fn frame_next(&self) -> u32 {
        let open = u32::try_from(self.open.len()).unwrap_or(u32::MAX);
        self.committed
            .frame_committed
            .saturating_add(open)
            .saturating_add(1)
    }

    /// Takes the next frame (header and page, what follows is ignored); yields the transaction if
    /// this frame ends one. After an error the walker stands where it stood before.
    ///
    /// # Errors
    ///
    /// Why the bytes are not the next frame; `EndOfBytes` if there are none.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Option<Transaction>, Stop> {
        let frame = check_frame(&self.header, self.checksum, bytes)?;
        let number = self.frame_next();
        self.checksum = frame.checksum;
        self.open.push(TransactionFrame {
            page: frame.page,
            offset: frame_offset(number, self.header.page_size),
        });
        let Some(page_count) = frame.commit else {
            return Ok(None);
        };
        let frame_first = self.committed.frame_committed + 1;
        self.committed.frame_committed = number;
        self.committed.checksum = frame.checksum;
        self.committed.page_count = Some(page_count);
        Ok(Some(Transaction {
            frame_first,
            frames: std::mem::take(&mut self.open),
            page_count,
        }))
    }

    /// What the walk amounts to if it stops here.
    #[must_use]
    pub fn end(&self, stop: Stop) -> End {
        End {
            stop,
            frames_open: u32::try_from(self.open.len()).unwrap_or(u32::MAX),
            ..self.committed
        }
    }
}

/// The whole transactions of a WAL that is in memory.
#[derive(Clone, Debug)]
pub struct Transactions<'a> {
    walker: Walker,
    rest: &'a [u8],
    stop: Option<Stop>,
}

impl<'a> Transactions<'a> {
    /// Checks the header of `image`, a complete WAL file.
    ///
    /// # Errors
    ///
    /// See [`WalHeader::parse`].
    pub fn of(image: &'a [u8]) -> Result<Self, WalError> {
        let header = WalHeader::parse(image)?;
        Ok(Self {
            walker: Walker::new(header),
            rest: image.get(WAL_HEADER_BYTES..).unwrap_or_default(),
            stop: None,
        })
    }

    /// The header of the WAL.
    #[must_use]
    pub const fn header(&self) -> &WalHeader {
        self.walker.header()
    }

    /// Where and why the walk ended; `None` while it goes on.
    #[must_use]
    pub fn end(&self) -> Option<End> {
        self.stop.map(|stop| self.walker.end(stop))
    }
}

impl Iterator for Transactions<'_> {
    type Item = Transaction;

    fn next(&mut self) -> Option<Transaction> {
        while self.stop.is_none() {
            match self.walker.push(self.rest) {
                Ok(transaction) => {
                    let length = FRAME_HEADER_BYTES + self.walker.header.page_size.len();
                    self.rest = self.rest.get(length..).unwrap_or_default();
                    if transaction.is_some() {
                        return transaction;
                    }
                }
                Err(stop) => self.stop = Some(stop),
            }
        }
        None
    }
}

/// The checks of SQLite's `walDecodeFrame`, in its order: salts, page number, checksum.
fn check_frame(header: &WalHeader, before: Checksum, bytes: &[u8]) -> Result<FrameHeader, Stop> {
    if bytes.is_empty() {
        return Err(Stop::EndOfBytes);
    }
    if (bytes.len() as u64) < frame_bytes(header.page_size) {
        return Err(Stop::ShortFrame);
    }
    let (head, image) = bytes.split_at(FRAME_HEADER_BYTES);
    if head[8..16] != header.salts.0 && !planted::is(Bug::SaltIgnored) {
        return Err(Stop::SaltMismatch);
    }
    let frame = FrameHeader::parse(head).map_err(|_| Stop::ZeroPage)?;
    let order: ByteOrder = header.order;
    let mut checksum = before;
    checksum.update(order, &head[..8]);
    checksum.update(order, &image[..header.page_size.len()]);
    if checksum == frame.checksum {
        Ok(frame)
    } else {
        Err(Stop::ChecksumMismatch)
    }
}

#[cfg(test)]
mod tests {
    use super::super::format::Salts;
    use super::super::page::PageSize;
    use super::*;

    fn image(commits: &[Option<u32>]) -> Vec<u8> {
        let size = PageSize::new(512).unwrap();
        let header = WalHeader::new(size, 0, Salts([1, 2, 3, 4, 5, 6, 7, 8]));
        let mut bytes = header.encode().to_vec();
        let mut checksum = header.checksum();
        for (number, commit) in (1..).zip(commits) {
            let page = PageNumber::new(number).unwrap();
            let body = [7; 512];
            let frame = FrameHeader::seal(
                page,
                commit.map(PageCount),
                &body,
                header.order,
                header.salts,
                checksum,
            );
            checksum = frame.checksum;
            bytes.extend_from_slice(&frame.encode());
            bytes.extend_from_slice(&body);
        }
        bytes
    }

    fn walk(bytes: &[u8]) -> (Vec<Transaction>, End) {
        let mut transactions = Transactions::of(bytes).unwrap();
        let found = transactions.by_ref().collect();
        (found, transactions.end().unwrap())
    }

    #[test]
    fn transactions_end_at_commit_frames_and_an_open_tail_is_counted() {
        let (found, end) = walk(&image(&[None, Some(2), Some(3), None, None]));
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].frames.len(), 2);
        assert_eq!(found[1].frame_first, 3);
        assert_eq!(found[1].frames[0].offset, 32 + 2 * 536);
        assert_eq!((end.stop, end.frames_open), (Stop::EndOfBytes, 2));
        assert_eq!(
            (end.frame_committed, end.page_count),
            (3, Some(PageCount(3)))
        );
    }

    #[test]
    fn each_kind_of_bad_frame_stops_the_walk_with_its_reason() {
        let good = image(&[Some(1), Some(2)]);
        let second = 32 + 536;
        let damage = |offset: usize, value: u8| {
            let mut bytes = good.clone();
            bytes[offset] = value;
            let (found, end) = walk(&bytes);
            assert_eq!((found.len(), end.frame_committed), (1, 1));
            end.stop
        };
        assert_eq!(damage(second + 3, 0), Stop::ZeroPage);
        assert_eq!(damage(second + 8, 99), Stop::SaltMismatch);
        assert_eq!(damage(second + 100, 8), Stop::ChecksumMismatch);
        assert_eq!(
            damage(second + 16, good[second + 16] ^ 1),
            Stop::ChecksumMismatch
        );
        assert_eq!(walk(&good[..good.len() - 1]).1.stop, Stop::ShortFrame);
        assert_eq!(walk(&good[..second]).1.stop, Stop::EndOfBytes);
    }
}

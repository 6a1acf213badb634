//! Hashes of pages in blocks. A copy shares the blocks, and a block is copied when either side
//! changes it: freezing the table of a large database costs next to nothing.

use std::sync::Arc;

use crate::wal::PageHash;

/// Hashes by index: that of page 1 is at 0.
#[derive(Clone, Debug, Default)]
pub(super) struct HashTable {
    /// All but the last one are full.
    blocks: Vec<Arc<Vec<PageHash>>>,
    len: usize,
}

impl HashTable {
    pub(super) const fn new() -> Self {
        Self {
            blocks: Vec::new(),
            len: 0,
        }
    }

    pub(super) const fn len(&self) -> usize {
        self.len
    }

    pub(super) fn get(&self, index: usize) -> Option<PageHash> {
        let block = self.blocks.get(index / BLOCK_ENTRIES)?;
        block.get(index % BLOCK_ENTRIES).copied()
    }

    /// Changes an entry that there is.
    pub(super) fn set(&mut self, index: usize, hash: PageHash) {
        let block = self.blocks.get_mut(index / BLOCK_ENTRIES);
        if let Some(entry) =
            block.and_then(|block| Arc::make_mut(block).get_mut(index % BLOCK_ENTRIES))
        {
            *entry = hash;
        }
    }

    pub(super) fn push(&mut self, hash: PageHash) {
        if self.len.is_multiple_of(BLOCK_ENTRIES) {
            self.blocks.push(Arc::default());
        }
        if let Some(block) = self.blocks.last_mut() {
            Arc::make_mut(block).push(hash);
            self.len += 1;
        }
    }

    /// Cuts the end off, or adds entries that are zero.
    pub(super) fn resize(&mut self, len: usize) {
        if len < self.len {
            self.blocks.truncate(len.div_ceil(BLOCK_ENTRIES));
            let left = len % BLOCK_ENTRIES;
            if let Some(block) = self.blocks.last_mut().filter(|_| left > 0) {
                Arc::make_mut(block).truncate(left);
            }
            self.len = len;
        }
        while self.len < len {
            self.push(PageHash::default());
        }
    }

    /// All entries from this index on.
    pub(super) fn iter_from(&self, index: usize) -> impl Iterator<Item = PageHash> + '_ {
        let (block, skip) = (index / BLOCK_ENTRIES, index % BLOCK_ENTRIES);
        let blocks = self.blocks.get(block..).unwrap_or_default();
        blocks
            .iter()
            .flat_map(|block| block.iter().copied())
            .skip(skip)
    }
}

/// 64 KiB: copied in some microseconds.
const BLOCK_ENTRIES: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(number: usize) -> PageHash {
        PageHash(number as u128 + 1)
    }

    #[test]
    fn a_table_holds_what_a_vector_would() {
        let (mut table, mut model) = (HashTable::new(), Vec::new());
        for len in [1, 4095, 4096, 4097, 9000, 8192, 8191, 4096, 0, 5000] {
            table.resize(len);
            model.resize(len, PageHash::default());
            for index in (0..len).step_by(7) {
                table.set(index, hash(index + len));
                model[index] = hash(index + len);
            }
            assert_eq!(table.len(), model.len());
            assert_eq!(table.get(len), None);
            for from in [0, 1, 4095, 4096, len] {
                let expected: Vec<_> = model.iter().skip(from).copied().collect();
                assert_eq!(table.iter_from(from).collect::<Vec<_>>(), expected);
            }
        }
    }

    #[test]
    fn a_copy_stays_as_it_was() {
        let mut table = HashTable::new();
        table.resize(10_000);
        table.set(5000, hash(1));
        let frozen = table.clone();
        table.set(5000, hash(2));
        table.resize(4097);
        table.resize(10_000);
        assert_eq!(frozen.get(5000), Some(hash(1)));
        assert_eq!(frozen.len(), 10_000);
        assert_eq!(table.get(5000), Some(PageHash::default()));
    }
}

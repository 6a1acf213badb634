//! What each page of a database is used for: found by walking everything that is reachable from page
//! 1, which also shows what is used twice, not at all, or cannot be read.

use std::collections::BTreeMap;
use std::fmt;

use wallaby::wal::PageNumber;

use super::{
    BtreeKind, BtreePage, Cell, Column, DatabaseHeader, Encoding, Pages, columns, u32_at,
    whole_payload,
};

/// What a page is used for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Role {
    /// Part of a b-tree: its number in [`Map::trees`], and what the page says it is.
    Btree(usize, BtreeKind),
    /// A free page whose content means nothing.
    FreeLeaf,
    /// A free page that lists others.
    FreeTrunk,
    /// SQLite's locks are on its bytes; it is never written.
    LockByte,
    /// The rest of a payload that begins on this page.
    Overflow(usize, PageNumber),
    /// Pointers back to parents, for auto-vacuum.
    PointerMap,
}

/// A b-tree.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Tree {
    /// The name of the table or index.
    pub name: String,
    /// The name of the table that it belongs to.
    pub table: String,
    /// Its root page.
    pub root: PageNumber,
}

/// Something that a sound database does not have.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Problem {
    /// On which page it was seen.
    pub page: u32,
    /// What.
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "page {}: {}", self.page, self.what)
    }
}

/// What all pages are used for.
#[derive(Clone, Debug)]
pub struct Map {
    /// What the database says about itself.
    pub header: DatabaseHeader,
    /// The schema's tree first, then those that it names.
    pub trees: Vec<Tree>,
    /// Pages that are used.
    pub roles: BTreeMap<PageNumber, Role>,
    /// What is wrong. Empty for a database that SQLite wrote.
    pub problems: Vec<Problem>,
}

impl Map {
    /// The name of the tree that a page belongs to.
    #[must_use]
    pub fn owner(&self, page: PageNumber) -> Option<&str> {
        match self.roles.get(&page)? {
            Role::Btree(tree, _) | Role::Overflow(tree, _) => {
                self.trees.get(*tree).map(|tree| tree.name.as_str())
            }
            _ => None,
        }
    }

    /// What a page is used for, in words.
    #[must_use]
    pub fn role_text(&self, page: PageNumber) -> String {
        match self.roles.get(&page) {
            None => "not used".to_owned(),
            Some(Role::Btree(_, kind)) => kind.to_string(),
            Some(Role::FreeLeaf) => "free".to_owned(),
            Some(Role::FreeTrunk) => "free trunk".to_owned(),
            Some(Role::LockByte) => "lock byte".to_owned(),
            Some(Role::Overflow(_, first)) => format!("overflow of {first}"),
            Some(Role::PointerMap) => "pointer map".to_owned(),
        }
    }

    /// How texts are stored.
    #[must_use]
    pub fn encoding(&self) -> Encoding {
        self.header.encoding.unwrap_or_default()
    }
}

/// Walks the whole database. Each page is read at most once, whatever the pages say.
///
/// # Errors
///
/// Page 1 cannot be read, or is no beginning of a database.
pub fn map(pages: &dyn Pages) -> Result<Map, String> {
    let first = pages.page(PageNumber::FIRST)?;
    let header = DatabaseHeader::parse(&first)?;
    if header.page_size != pages.page_size() {
        return Err(format!(
            "page 1 says that a page has {} bytes, not {}",
            header.page_size,
            pages.page_size()
        ));
    }
    let mut walk = Walk {
        pages,
        map: Map {
            header,
            trees: Vec::new(),
            roles: BTreeMap::new(),
            problems: Vec::new(),
        },
    };
    walk.fixed_pages();
    walk.freelist();
    walk.schema();
    walk.unused();
    Ok(walk.map)
}

struct Walk<'a> {
    pages: &'a dyn Pages,
    map: Map,
}

impl Walk<'_> {
    fn problem(&mut self, page: PageNumber, what: impl Into<String>) {
        let (page, what) = (page.number(), what.into());
        self.map.problems.push(Problem { page, what });
    }

    /// Takes a page for a purpose; not if it cannot be, or is taken already.
    fn claim(&mut self, from: PageNumber, page: PageNumber, role: Role) -> bool {
        if !self.pages.page_count().contains(page) {
            self.problem(from, format!("names page {page}, which does not exist"));
            return false;
        }
        if let Some(other) = self.map.roles.get(&page) {
            let what = format!("names page {page}, which is used already ({other:?})");
            self.problem(from, what);
            return false;
        }
        self.map.roles.insert(page, role);
        true
    }

    fn fixed_pages(&mut self) {
        let count = self.pages.page_count();
        let lock = self.pages.page_size().lock_byte_page();
        if count.contains(lock) {
            self.map.roles.insert(lock, Role::LockByte);
        }
        if self.map.header.largest_root == 0 {
            return;
        }
        for page in numbers(count.0) {
            if self.map.header.is_pointer_map(page) {
                self.map.roles.insert(page, Role::PointerMap);
            }
        }
    }

    fn freelist(&mut self) {
        let (mut from, mut next) = (PageNumber::FIRST, self.map.header.freelist);
        let mut found = 0_u32;
        while let Some(trunk) = next {
            if !self.claim(from, trunk, Role::FreeTrunk) {
                break;
            }
            found += 1;
            from = trunk;
            let image = match self.pages.page(trunk) {
                Ok(image) => image,
                Err(error) => {
                    self.problem(trunk, error);
                    break;
                }
            };
            next = u32_at(&image, 0).and_then(PageNumber::new);
            let leaves = u32_at(&image, 4).unwrap_or_default() as usize;
            if leaves > self.map.header.usable() / 4 - 2 {
                self.problem(
                    trunk,
                    format!("lists {leaves} free pages, which do not fit"),
                );
                continue;
            }
            for slot in 0..leaves {
                let leaf = u32_at(&image, 8 + 4 * slot).and_then(PageNumber::new);
                match leaf {
                    Some(leaf) if self.claim(trunk, leaf, Role::FreeLeaf) => found += 1,
                    Some(_) => {}
                    None => self.problem(trunk, "lists page 0 as free"),
                }
            }
        }
        let said = self.map.header.free_pages;
        if said != found {
            let what = format!("says that {said} pages are free, and {found} are listed");
            self.problem(PageNumber::FIRST, what);
        }
    }

    /// The schema, and all trees that it names.
    fn schema(&mut self) {
        self.map.trees.push(Tree {
            name: "sqlite_schema".to_owned(),
            table: "sqlite_schema".to_owned(),
            root: PageNumber::FIRST,
        });
        let mut rows = Vec::new();
        self.tree(0, |payload| rows.push(payload));
        for payload in rows {
            let columns = columns(&payload, self.map.encoding());
            match columns.as_deref() {
                Ok(
                    [
                        Column::Text(_),
                        Column::Text(name),
                        Column::Text(table),
                        Column::Integer(root),
                        ..,
                    ],
                ) => {
                    // A view or a trigger has no root: 0.
                    let root = u32::try_from(*root).ok().and_then(PageNumber::new);
                    if let Some(root) = root {
                        let (name, table) = (name.clone(), table.clone());
                        self.map.trees.push(Tree { name, table, root });
                        self.tree(self.map.trees.len() - 1, drop);
                    }
                }
                // The root of a view or a virtual table may be NULL.
                Ok([_, Column::Text(_), _, Column::Null, ..]) => {}
                Ok(_) => self.problem(PageNumber::FIRST, "a row of the schema that is none"),
                Err(what) => self.problem(PageNumber::FIRST, *what),
            }
        }
    }

    /// Walks a tree; `row` gets the payloads of its leaves.
    fn tree(&mut self, tree: usize, mut row: impl FnMut(Vec<u8>)) {
        let root = self.map.trees[tree].root;
        let mut open = vec![(root, root)];
        while let Some((from, page)) = open.pop() {
            let is_new = !self.map.roles.contains_key(&page);
            if !is_new || !self.pages.page_count().contains(page) {
                // Says what is wrong with that.
                self.claim(from, page, Role::FreeLeaf);
                continue;
            }
            let image = match self.pages.page(page) {
                Ok(image) => image,
                Err(error) => {
                    self.problem(from, error);
                    continue;
                }
            };
            let usable = self.map.header.usable();
            let parsed = match BtreePage::parse(page, &image, usable) {
                Ok(parsed) => parsed,
                Err(fault) => {
                    self.problem(page, fault.to_string());
                    continue;
                }
            };
            if !self.claim(from, page, Role::Btree(tree, parsed.kind)) {
                continue;
            }
            if let Err(fault) = parsed.free_bytes() {
                self.problem(page, fault.to_string());
            }
            let mut children = Vec::new();
            for cell in parsed.cells() {
                match cell {
                    Ok(cell) => {
                        children.extend(cell.left_child);
                        self.payload(tree, page, &parsed, &cell, &mut row);
                    }
                    Err(fault) => self.problem(page, fault.to_string()),
                }
            }
            if parsed.kind.is_interior() {
                children.push(parsed.right_child.map_or(0, PageNumber::number));
            }
            for child in children.into_iter().rev() {
                match PageNumber::new(child) {
                    Some(child) => open.push((page, child)),
                    None => self.problem(page, "names page 0 as a child"),
                }
            }
        }
    }

    fn payload(
        &mut self,
        tree: usize,
        page: PageNumber,
        parsed: &BtreePage<'_>,
        cell: &Cell,
        row: &mut impl FnMut(Vec<u8>),
    ) {
        if cell.payload_bytes.is_none() {
            return;
        }
        let (pages, usable) = (self.pages, self.map.header.usable());
        let visit = |next| {
            if self.claim(page, next, Role::Overflow(tree, page)) {
                Ok(())
            } else {
                Err(format!(
                    "the overflow of cell {} cannot be followed",
                    cell.index
                ))
            }
        };
        match whole_payload(pages, usable, parsed, cell, visit) {
            Ok(payload) => {
                if let Err(what) = columns(&payload, self.map.encoding()) {
                    self.problem(page, format!("cell {}: {what}", cell.index));
                }
                row(payload);
            }
            Err(what) => self.problem(page, format!("cell {}: {what}", cell.index)),
        }
    }

    fn unused(&mut self) {
        let count = self.pages.page_count().0;
        let unused: Vec<PageNumber> = numbers(count)
            .filter(|page| !self.map.roles.contains_key(page))
            .collect();
        for page in unused {
            self.problem(page, "is not used by anything");
        }
    }
}

/// The pages from 1 to `count`.
fn numbers(count: u32) -> impl Iterator<Item = PageNumber> {
    (1..=count).filter_map(PageNumber::new)
}

//! The grammar: statements, and what they are made of. Not all of it is valid SQL, on purpose.

use crate::script::Script;

/// A rule's right side: text, with the names of other rules in braces.
type Rule = &'static [&'static str];

/// How many kinds of statements there are.
#[expect(clippy::cast_possible_truncation, reason = "some dozens")]
pub(crate) const STATEMENTS: u8 = STATEMENT.len() as u8;

const STATEMENT: Rule = &[
    "ATTACH {file} AS {name}",
    "ATTACH DATABASE ({expression}) AS {name}",
    "DETACH {name}",
    "VACUUM INTO {file}",
    "VACUUM {schema} INTO ({expression})",
    "VACUUM",
    "SELECT {file-function}",
    "SELECT * FROM {file-table}",
    "PRAGMA {pragma}",
    "PRAGMA {pragma} = {value}",
    "PRAGMA {schema}.{pragma}({value})",
    "SELECT * FROM pragma_{pragma}",
    "SELECT * FROM pragma_{pragma}({value})",
    "EXPLAIN {statement}",
    "EXPLAIN QUERY PLAN {statement}",
    "CREATE TEMP TABLE {name} AS {select}",
    "CREATE TEMP VIEW {name} AS {select}",
    "CREATE TEMP TRIGGER {name} AFTER INSERT ON {table} BEGIN {statement}; END",
    "CREATE TABLE {schema}.{name}(a DEFAULT ({expression}), b AS ({expression}))",
    "CREATE TABLE {name} AS {select}",
    "CREATE TABLE {name}(a CHECK ({expression}))",
    "CREATE INDEX {name} ON {table}({expression})",
    "CREATE VIEW {name} AS {select}",
    "CREATE TRIGGER {name} AFTER INSERT ON {table} BEGIN {statement}; END",
    "CREATE VIRTUAL TABLE {name} USING {module}({file})",
    "CREATE VIRTUAL TABLE temp.{name} USING {module}(a)",
    "INSERT INTO {table} VALUES ({value}, {expression}, {value})",
    "INSERT INTO {table} {select}",
    "INSERT INTO sqlite_schema VALUES ('table', 'z', 'z', 2, {file})",
    "UPDATE sqlite_schema SET sql = {file}",
    "UPDATE {table} SET x = {expression}",
    "DELETE FROM {table} WHERE {expression}",
    "INSERT INTO f(f) VALUES ({option})",
    "INSERT INTO f(f, rank) VALUES ({option}, {value})",
    "{select}",
    "{select} ORDER BY {expression} LIMIT 9",
    "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c LIMIT 99) {select}",
    "ALTER TABLE {table} RENAME TO {name}",
    "ALTER TABLE {table} ADD COLUMN {name} DEFAULT ({expression})",
    "DROP TABLE {table}",
    "REINDEX {table}",
    "ANALYZE {schema}",
    "BEGIN",
    "SAVEPOINT {name}",
    "COMMIT",
    "{statement}; {statement}",
    "/* {file} */ {statement}",
    "\u{feff}{statement}",
];

const SELECT: Rule = &[
    "SELECT {expression}",
    "SELECT * FROM {table}",
    "SELECT {expression}, * FROM {table} WHERE {expression}",
    "SELECT * FROM {name}.secret",
    "SELECT * FROM secret",
    "SELECT * FROM {file-table}",
    "SELECT {expression} FROM {table} GROUP BY 1 HAVING {expression}",
    "VALUES ({value}, {expression})",
];

const EXPRESSION: Rule = &[
    "{value}",
    "{file}",
    "x",
    "{file-function}",
    "({select})",
    "{expression} || {expression}",
    "{expression} = {expression}",
    "CAST({expression} AS BLOB)",
    "json_extract({file}, '$')",
    "zeroblob({value})",
    "printf('%s', {expression})",
    "EXISTS ({select})",
];

const FILE_FUNCTION: Rule = &[
    "load_extension({file})",
    "load_extension({file}, 'entry')",
    "readfile({file})",
    "writefile({file}, {value})",
    "edit({value}, {file})",
    "fsdir({file})",
    "sqlite3_attach({file})",
    "fts3_tokenizer('x', {value})",
    "sqlite_compileoption_get(1)",
    "sqlite_source_id()",
    "fts5_source_id()",
    "zipfile({file}, {value})",
    "lsmode({value})",
    "rtreecheck({file})",
];

const FILE_TABLE: Rule = &[
    "fsdir({file})",
    "csv({file})",
    "zipfile({file})",
    "sqlite_dbpage",
    "sqlite_dbpage({file})",
    "dbstat",
    "dbstat({file})",
    "pragma_database_list",
    "completion({value})",
    "json_each({file})",
    "bytecode({file})",
    "sqlite_stmt",
    "sqlite_temp_schema",
    "{file-name}",
];

const PRAGMA: Rule = &[
    "temp_store_directory",
    "data_store_directory",
    "temp_store",
    "journal_mode",
    "wal_checkpoint",
    "wal_autocheckpoint",
    "synchronous",
    "locking_mode",
    "writable_schema",
    "query_only",
    "trusted_schema",
    "mmap_size",
    "cache_spill",
    "cache_size",
    "database_list",
    "filename",
    "key",
    "rekey",
    "hexkey",
    "activate_extensions",
    "lock_proxy_file",
    "lock_status",
    "auto_vacuum",
    "incremental_vacuum",
    "page_size",
    "encoding",
    "shrink_memory",
    "integrity_check",
    "optimize",
    "user_version",
    "table_info",
    "foreign_key_check",
    "module_list",
    "schema_version",
    "journal_size_limit",
    "hard_heap_limit",
    "threads",
    "default_cache_size",
    "reverse_unordered_selects",
];

const VALUE: Rule = &[
    "1",
    "0",
    "-1",
    "NULL",
    "2.5",
    "x'00ff'",
    "'text'",
    "{file}",
    "main",
    "ON",
    "OFF",
    "MEMORY",
    "DELETE",
    "FILE",
    "TRUNCATE",
    "EXCLUSIVE",
    "100000",
    "9223372036854775807",
];

const OPTION: Rule = &[
    "'optimize'",
    "'rebuild'",
    "'integrity-check'",
    "'delete-all'",
    "'merge'",
    "'pgsz'",
    "{file}",
];

const MODULE: Rule = &[
    "fts5",
    "fts3",
    "fts4",
    "rtree",
    "geopoly",
    "dbstat",
    "csv",
    "zipfile",
    "fsdir",
    "json_each",
    "sqlite_dbpage",
    "fts5vocab",
    "fts4aux",
];

const TABLE: Rule = &[
    "t",
    "w",
    "f",
    "v",
    "sqlite_schema",
    "main.t",
    "temp.t",
    "other.secret",
    "a1",
];
const NAME: Rule = &[
    "other",
    "a1",
    "temp",
    "main",
    "\"{file-name}\"",
    "t",
    "secret",
];
const SCHEMA: Rule = &["main", "temp", "other", "a1"];

/// A rule by its name.
fn rule(name: &str) -> Option<Rule> {
    Some(match name {
        "expression" => EXPRESSION,
        "file-function" => FILE_FUNCTION,
        "file-table" => FILE_TABLE,
        "module" => MODULE,
        "name" => NAME,
        "option" => OPTION,
        "pragma" => PRAGMA,
        "schema" => SCHEMA,
        "select" => SELECT,
        "statement" => STATEMENT,
        "table" => TABLE,
        "value" => VALUE,
        _ => return None,
    })
}

/// Makes texts, with these names of files.
pub(crate) struct Grammar<'a> {
    files: &'a [String],
    /// Rules that are left for the text that is being made.
    budget: usize,
}

impl<'a> Grammar<'a> {
    pub(crate) const fn new(files: &'a [String]) -> Self {
        Self { files, budget: 0 }
    }

    /// One text, which may hold several statements.
    pub(crate) fn text(&mut self, script: &mut Script<'_>) -> String {
        let mut out = String::new();
        self.budget = RULES_MAX;
        self.expand(STATEMENT, script, &mut out);
        out
    }

    fn expand(&mut self, rule: Rule, script: &mut Script<'_>, out: &mut String) {
        let mut rest = script.pick(rule);
        if self.budget == 0 {
            out.push('1');
            return;
        }
        self.budget -= 1;
        while let Some((text, after)) = rest.split_once('{') {
            let (name, after) = after.split_once('}').expect("braces come in pairs");
            out.push_str(text);
            match (name, self::rule(name)) {
                (_, Some(rule)) => self.expand(rule, script, out),
                ("file", None) => {
                    out.push('\'');
                    out.push_str(self.file(script));
                    out.push('\'');
                }
                ("file-name", None) => out.push_str(self.file(script)),
                _ => unreachable!("a rule without a name: {name}"),
            }
            rest = after;
        }
        out.push_str(rest);
    }

    fn file(&self, script: &mut Script<'_>) -> &'a str {
        &self.files[script.below(self.files.len())]
    }
}

const RULES_MAX: usize = 24;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_that_is_named_exists_and_every_text_ends() {
        let files = ["a-file".to_owned()];
        let mut grammar = Grammar::new(&files);
        let mut texts = std::collections::BTreeSet::new();
        for first in 0..=u8::MAX {
            for step in 0..16_u8 {
                let bytes: Vec<u8> = (0..64)
                    .map(|at: u8| {
                        if at == 0 {
                            first
                        } else {
                            at.wrapping_mul(step * 5 + 3)
                        }
                    })
                    .collect();
                let text = grammar.text(&mut Script::new(&bytes));
                assert!(!text.contains('{'), "{text}");
                texts.insert(text);
            }
        }
        assert!(texts.len() > 500, "{}", texts.len());
        assert!(texts.iter().any(|text| text == "VACUUM INTO 'a-file'"));
    }
}

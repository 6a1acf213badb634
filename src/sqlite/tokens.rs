//! The little of SQL's lexical grammar that is needed to recognise a statement by its first words,
//! with comments, strings and quoted names told apart (SQLite: "SQL Comment Syntax", tokenize.c).

/// One token of SQL text.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Token<'s> {
    /// A keyword, a bare name or a number.
    Word(&'s str),
    /// A string or a quoted name, without its quotes.
    Quoted(&'s str),
    /// Any other character.
    Symbol(u8),
}

impl Token<'_> {
    fn is_word(self, word: &str) -> bool {
        matches!(self, Self::Word(text) if text.eq_ignore_ascii_case(word))
    }
}

/// The tokens of a text; white space and comments are skipped.
#[derive(Clone, Debug)]
pub(crate) struct Tokens<'s> {
    sql: &'s str,
    position: usize,
}

impl<'s> Tokens<'s> {
    /// Starts at the beginning of `sql`.
    pub(crate) fn new(sql: &'s str) -> Self {
        Self { sql, position: 0 }
    }

    fn rest(&self) -> &'s [u8] {
        self.sql.as_bytes().get(self.position..).unwrap_or_default()
    }

    /// Moves past white space, comments and byte-order marks.
    fn skip_blank(&mut self) {
        loop {
            let rest = self.rest();
            let length = match rest {
                [b' ' | b'\t' | b'\n' | b'\r' | b'\x0c', ..] => 1,
                [0xef, 0xbb, 0xbf, ..] => 3,
                [b'-', b'-', ..] => find(rest, 2, |bytes| bytes[0] == b'\n', 1),
                [b'/', b'*', ..] => find(rest, 2, |bytes| bytes.starts_with(b"*/"), 2),
                _ => return,
            };
            self.position += length;
        }
    }

    fn take(&mut self, length: usize) -> &'s str {
        let start = self.position;
        self.position = (start + length).min(self.sql.len());
        self.sql.get(start..self.position).unwrap_or_default()
    }
}

/// The length of a token that begins before `from` and ends with `end`, which is `end_length`
/// bytes. An unterminated one reaches to the end of the text.
fn find(rest: &[u8], from: usize, end: impl Fn(&[u8]) -> bool, end_length: usize) -> usize {
    (from..rest.len())
        .find(|&at| end(&rest[at..]))
        .map_or(rest.len(), |at| at + end_length)
}

fn is_word_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'$' || byte >= 0x80
}

impl<'s> Iterator for Tokens<'s> {
    type Item = Token<'s>;

    fn next(&mut self) -> Option<Token<'s>> {
        self.skip_blank();
        let rest = self.rest();
        let first = *rest.first()?;
        if matches!(first, b'\'' | b'"' | b'`' | b'[') {
            let close = if first == b'[' { b']' } else { first };
            let text = self.take(find(rest, 1, |bytes| bytes[0] == close, 1));
            return Some(Token::Quoted(text[1..].trim_end_matches(char::from(close))));
        }
        if is_word_byte(first) {
            let length = rest.iter().take_while(|&&byte| is_word_byte(byte)).count();
            return Some(Token::Word(self.take(length)));
        }
        self.position += 1;
        Some(Token::Symbol(first))
    }
}

/// Whether there is nothing left to run: only white space, comments and semicolons.
pub(crate) fn is_blank(sql: &str) -> bool {
    Tokens::new(sql).all(|token| token == Token::Symbol(b';'))
}

/// What kind of statement a text begins with, as far as it matters here.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Keyword {
    /// BEGIN.
    Begin,
    /// COMMIT or END.
    Commit,
    /// INSERT, REPLACE, UPDATE, DELETE, or WITH in front of one: sets the count of changes.
    Change,
    /// CREATE, DROP, ALTER, REINDEX, ANALYZE: certainly no read.
    Define,
    /// CREATE VIRTUAL TABLE.
    DefineVirtual,
    /// PRAGMA.
    Pragma,
    /// ROLLBACK without TO.
    Rollback,
    /// SAVEPOINT, RELEASE or ROLLBACK TO.
    Savepoint,
    /// VACUUM.
    Vacuum,
    /// WITH: a query, or a change.
    With,
    /// Anything else.
    Other,
}

/// Classifies the first statement of `sql`.
pub(crate) fn keyword(sql: &str) -> Keyword {
    let mut tokens = Tokens::new(sql).skip_while(|&token| token == Token::Symbol(b';'));
    let Some(Token::Word(word)) = tokens.next() else {
        return Keyword::Other;
    };
    match word.to_ascii_uppercase().as_str() {
        "BEGIN" => Keyword::Begin,
        "COMMIT" | "END" => Keyword::Commit,
        "INSERT" | "REPLACE" | "UPDATE" | "DELETE" => Keyword::Change,
        "CREATE" if tokens.next().is_some_and(|token| token.is_word("VIRTUAL")) => {
            Keyword::DefineVirtual
        }
        "CREATE" | "DROP" | "ALTER" | "REINDEX" | "ANALYZE" => Keyword::Define,
        "PRAGMA" => Keyword::Pragma,
        "ROLLBACK" => {
            let mut tail = tokens.take_while(|&token| token != Token::Symbol(b';'));
            if tail.any(|token| token.is_word("TO")) {
                Keyword::Savepoint
            } else {
                Keyword::Rollback
            }
        }
        "SAVEPOINT" | "RELEASE" => Keyword::Savepoint,
        "VACUUM" => Keyword::Vacuum,
        "WITH" => Keyword::With,
        _ => Keyword::Other,
    }
}

/// Whether any statement of `sql` is a VACUUM, which cannot run inside a transaction.
pub(crate) fn has_vacuum(sql: &str) -> bool {
    starts(sql).any(|mut tokens| tokens.next().is_some_and(|token| token.is_word("VACUUM")))
}

/// Where statements may begin: at the start and after each semicolon. (Those inside the body of a
/// trigger are included; nothing that is looked for here can stand there.)
fn starts(sql: &str) -> impl Iterator<Item = Tokens<'_>> {
    let mut tokens = Tokens::new(sql);
    let mut first = Some(tokens.clone());
    std::iter::from_fn(move || {
        first.take().or_else(|| {
            tokens.find(|&token| token == Token::Symbol(b';'))?;
            Some(tokens.clone())
        })
    })
}

/// Whether any statement of `sql` is a pragma that would take the database out of our hands:
/// `wal_checkpoint` in any form, or setting `journal_mode`, `wal_autocheckpoint`, `synchronous`
/// or `query_only`. EXPLAIN in front does not help.
pub(crate) fn has_disallowed_pragma(sql: &str) -> bool {
    starts(sql).any(|mut tokens| {
        let mut token = tokens.next();
        for word in ["EXPLAIN", "QUERY", "PLAN"] {
            if token.is_some_and(|token| token.is_word(word)) {
                token = tokens.next();
            }
        }
        token.is_some_and(|token| token.is_word("PRAGMA")) && is_disallowed_pragma(tokens)
    })
}

fn is_disallowed_pragma(mut tokens: Tokens<'_>) -> bool {
    let mut name = tokens.next();
    let mut next = tokens.next();
    if next == Some(Token::Symbol(b'.')) {
        name = tokens.next();
        next = tokens.next();
    }
    let Some(Token::Word(name) | Token::Quoted(name)) = name else {
        return false;
    };
    let is_set = matches!(next, Some(Token::Symbol(b'=' | b'(')));
    match name.to_ascii_lowercase().as_str() {
        "wal_checkpoint" => true,
        "journal_mode" | "wal_autocheckpoint" | "synchronous" | "query_only" => is_set,
        _ => false,
    }
}

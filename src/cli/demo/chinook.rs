//! The Chinook sample database, cut into transactions.

/// The script: DROP, CREATE TABLE, CREATE INDEX, and INSERTs of up to a thousand rows each.
pub(super) const SQL: &str = include_str!("chinook.sql");

/// The script's statements in order, in batches of at least `batch_bytes` of SQL text (the last one
/// may be smaller, and no statement is torn apart).
pub(super) fn batches(script: &str, batch_bytes: usize) -> Vec<Vec<String>> {
    let mut batches = Vec::new();
    let mut batch = Vec::new();
    let mut bytes = 0;
    for statement in statements(script) {
        bytes += statement.len();
        batch.push(statement.to_owned());
        if bytes >= batch_bytes {
            batches.push(std::mem::take(&mut batch));
            bytes = 0;
        }
    }
    if !batch.is_empty() {
        batches.push(batch);
    }
    batches
}

/// Cuts a script at the semicolons that end a statement: not those in quotes or comments.
/// Comments stay with the statement that follows. Triggers, whose bodies hold semicolons, are not
/// understood; Chinook has none.
fn statements(script: &str) -> Vec<&str> {
    let bytes = script.as_bytes();
    let mut found = Vec::new();
    let mut start = 0;
    let mut at = 0;
    while at < bytes.len() {
        let rest = &script[at..];
        let end = match bytes[at] {
            b';' => {
                found.push(script[start..=at].trim());
                start = at + 1;
                None
            }
            // A doubled quote inside a quoted text reads as two texts side by side: same end.
            b'\'' => Some("'"),
            b'"' => Some("\""),
            b'[' => Some("]"),
            b'-' if rest.starts_with("--") => Some("\n"),
            b'/' if rest.starts_with("/*") => Some("*/"),
            _ => None,
        };
        at += match end {
            // Comment openers are two characters: `/*/` must not count as closed.
            Some(end) => {
                let opener = if end.len() == 2 { 2 } else { 1 };
                script[at + opener..]
                    .find(end)
                    .map_or(bytes.len() - at, |length| opener + length + end.len())
            }
            None => rest.chars().next().map_or(1, char::len_utf8),
        };
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn semicolons_in_quotes_and_comments_end_nothing() {
        let script = "/*/ ; */ SELECT 'it''s; [', \"a;b\", [c;d]; -- e;f\nSELECT 'g\u{e7}';";
        let expected = [
            "/*/ ; */ SELECT 'it''s; [', \"a;b\", [c;d];",
            "-- e;f\nSELECT 'g\u{e7}';",
        ];
        assert_eq!(statements(script), expected);
    }

    #[test]
    fn no_statement_of_the_script_is_lost_or_torn() {
        let plain = rusqlite::Connection::open_in_memory().unwrap();
        plain.execute_batch(SQL).unwrap();
        let cut = rusqlite::Connection::open_in_memory().unwrap();
        for statement in batches(SQL, 10_000).into_iter().flatten() {
            cut.execute(&statement, []).unwrap();
        }
        for table in [
            "Album",
            "Artist",
            "Customer",
            "InvoiceLine",
            "PlaylistTrack",
            "Track",
        ] {
            let count = format!("SELECT count(*) FROM {table}");
            let of =
                |db: &rusqlite::Connection| db.query_row(&count, [], |row| row.get::<_, i64>(0));
            assert_eq!(of(&cut).unwrap(), of(&plain).unwrap(), "{table}");
        }
    }
}

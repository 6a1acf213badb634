//! Actions as SQL, and answers in rqlite's JSON as answers to actions.

use serde_json::{Value, json};

use super::action::{Action, Answer};

/// Makes all tables.
pub const SCHEMA: [&str; 9] = [
    "CREATE TABLE journal(n INTEGER PRIMARY KEY, operation INTEGER)",
    "CREATE TABLE register(key INTEGER PRIMARY KEY, value INTEGER)",
    "CREATE TABLE list(key INTEGER PRIMARY KEY, items TEXT)",
    "CREATE TABLE element(key INTEGER, value INTEGER, PRIMARY KEY(key, value)) WITHOUT ROWID",
    "CREATE TABLE counter(key INTEGER PRIMARY KEY, n INTEGER)",
    "CREATE TABLE large(key INTEGER, row INTEGER, body BLOB, PRIMARY KEY(key, row))",
    "CREATE TABLE account(id INTEGER PRIMARY KEY, balance INTEGER CHECK(balance >= 0))",
    // ACCOUNTS of them, each with BALANCE.
    "INSERT INTO account WITH RECURSIVE c(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM c \
     WHERE i < 7) SELECT i, 100 FROM c",
    crate::workload::TABLE,
];

/// The statements of a request that writes. `journalled`: the number of the operation, for the
/// journal.
#[must_use]
pub fn write(actions: &[Action], journalled: Option<u64>) -> Value {
    let mut statements = Vec::new();
    if let Some(id) = journalled {
        statements.push(json!(["INSERT INTO journal(operation) VALUES(?)", id]));
    }
    for action in actions {
        statements.extend(match action.is_read() {
            true => vec![json!([format!("SELECT {}", column(action))])],
            false => change(action),
        });
    }
    json!(statements)
}

/// The one statement of a request that reads: the last number in the journal, and then a column for
/// each action. One statement sees one state.
#[must_use]
pub fn read(actions: &[Action]) -> Value {
    let columns: Vec<String> = actions.iter().map(column).collect();
    let last = "(SELECT max(n) FROM journal)";
    json!([format!("SELECT {last}, {}", columns.join(", "))])
}

/// The number in the journal and the answers in the results of [`write()`].
///
/// # Errors
///
/// What is wrong with them; a statement that failed as well.
pub fn understand_write(
    actions: &[Action],
    journalled: bool,
    results: &[Value],
) -> Result<(Option<u64>, Vec<Answer>), String> {
    if let Some(error) = results.iter().find_map(|result| result["error"].as_str()) {
        return Err(error.to_owned());
    }
    let mut results = results.iter();
    let mut next = || results.next().ok_or("a result is missing");
    let place = match journalled {
        true => Some(next()?["last_insert_id"].as_u64().ok_or("no number")?),
        false => None,
    };
    let mut answers = Vec::new();
    for action in actions {
        let result = next()?;
        answers.push(match action {
            action if action.is_read() => numbers(&result["values"][0][0])?,
            Action::Create { .. } => {
                // Its index and its row.
                next()?;
                next()?;
                Answer::Done
            }
            Action::Drop { .. } | Action::Widen { .. } => Answer::Done,
            _ => Answer::Changed(result["rows_affected"].as_i64().unwrap_or(0)),
        });
    }
    Ok((place, answers))
}

/// The same for [`read()`].
///
/// # Errors
///
/// What is wrong with them.
pub fn understand_read(actions: &[Action], result: &Value) -> Result<(u64, Vec<Answer>), String> {
    if let Some(error) = result["error"].as_str() {
        return Err(error.to_owned());
    }
    let row = &result["values"][0];
    // Nothing in the journal yet.
    let place = row[0].as_u64().unwrap_or(0);
    let answers = (1..=actions.len()).map(|column| numbers(&row[column]));
    Ok((place, answers.collect::<Result<_, _>>()?))
}

/// A number, numbers with commas between them, or nothing.
fn numbers(cell: &Value) -> Result<Answer, String> {
    let text = match cell {
        Value::Null => return Ok(Answer::Numbers(Vec::new())),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let parse = |part: &str| part.parse().map_err(|_| format!("no number: {part}"));
    let numbers: Result<_, String> = text.split(',').map(parse).collect();
    Ok(Answer::Numbers(numbers?))
}

/// A subquery with what an action reads.
fn column(action: &Action) -> String {
    match action {
        Action::ReadAccounts => {
            "(SELECT group_concat(balance) FROM (SELECT balance FROM account ORDER BY id))".into()
        }
        Action::ReadCounter(key) => format!("(SELECT n FROM counter WHERE key = {key})"),
        Action::ReadFilled(key) => format!(
            "(SELECT count(*) || ',' || coalesce(sum(length(body)), 0) FROM large \
             WHERE key = {key})"
        ),
        Action::ReadList(key) => format!("(SELECT items FROM list WHERE key = {key})"),
        Action::ReadRegister(key) => format!("(SELECT value FROM register WHERE key = {key})"),
        Action::ReadSet(key) => format!(
            "(SELECT group_concat(value) FROM (SELECT value FROM element WHERE key = {key} \
             ORDER BY value))"
        ),
        Action::ReadTables => "(SELECT group_concat(substr(name, 7)) FROM (SELECT name FROM \
             sqlite_schema WHERE type = 'table' AND name GLOB 'churn_*' \
             ORDER BY CAST(substr(name, 7) AS INTEGER)))"
            .into(),
        _ => "NULL".into(),
    }
}

/// The statements of an action that changes something.
fn change(action: &Action) -> Vec<Value> {
    let statement = match action {
        Action::Add { key, amount } => json!([
            "INSERT INTO counter VALUES(?, ?) ON CONFLICT(key) DO UPDATE SET n = n + excluded.n",
            key,
            amount
        ]),
        Action::Append { key, value } => json!([
            "INSERT INTO list VALUES(?, CAST(? AS TEXT)) ON CONFLICT(key) DO UPDATE SET \
             items = items || ',' || excluded.items",
            key,
            value
        ]),
        Action::Cas { key, from, to } => json!([
            "UPDATE register SET value = ? WHERE key = ? AND value = ?",
            to,
            key,
            from
        ]),
        Action::Create { key } => {
            return vec![
                json!([format!("CREATE TABLE churn_{key}(a, b DEFAULT (random()))")]),
                json!([format!("CREATE INDEX churn_{key}_a ON churn_{key}(a, b)")]),
                json!([format!("INSERT INTO churn_{key}(a) VALUES({key})")]),
            ];
        }
        Action::Clear { key } => json!(["DELETE FROM large WHERE key = ?", key]),
        Action::Drop { key } => json!([format!("DROP TABLE churn_{key}")]),
        Action::Fill { key, rows, bytes } => json!([
            "INSERT INTO large WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c \
             WHERE i < ?) SELECT ?, i, randomblob(?) FROM c",
            rows,
            key,
            bytes
        ]),
        Action::Insert { key, value } => json!(["INSERT INTO element VALUES(?, ?)", key, value]),
        Action::Widen { key } => json!([format!(
            "ALTER TABLE churn_{key} ADD COLUMN c DEFAULT 'something'"
        )]),
        Action::Set { key, value } => {
            json!(["INSERT OR REPLACE INTO register VALUES(?, ?)", key, value])
        }
        Action::Transfer { from, to, amount } => json!([
            "UPDATE account SET balance = balance + CASE id WHEN ?1 THEN -?3 ELSE ?3 END \
             WHERE id IN (?1, ?2) AND (SELECT balance FROM account WHERE id = ?1) >= ?3",
            from,
            to,
            amount
        ]),
        _ => return Vec::new(),
    };
    vec![statement]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Model;
    use crate::history::action::ACCOUNTS;
    use crate::seed::Random;

    /// Runs a request on SQLite and gives the results the form that the server gives them.
    fn run(database: &rusqlite::Connection, statements: &Value) -> Vec<Value> {
        let statements = statements.as_array().unwrap();
        let mut results = Vec::new();
        for statement in statements {
            let words: Vec<Value> = match statement {
                Value::String(_) => vec![statement.clone()],
                other => other.as_array().unwrap().clone(),
            };
            let mut prepared = database.prepare(words[0].as_str().unwrap()).unwrap();
            let parameters = words[1..].iter().map(|value| value.as_i64().unwrap());
            let parameters = rusqlite::params_from_iter(parameters);
            results.push(if prepared.column_count() > 0 {
                let columns = prepared.column_count();
                let mut rows = prepared.query(parameters).unwrap();
                let row = rows.next().unwrap().unwrap();
                let cells = (0..columns).map(|at| match row.get_ref(at).unwrap() {
                    rusqlite::types::ValueRef::Null => Value::Null,
                    rusqlite::types::ValueRef::Integer(number) => json!(number),
                    other => json!(other.as_str().unwrap()),
                });
                json!({ "values": [cells.collect::<Vec<_>>()] })
            } else {
                let changed = prepared.execute(parameters).unwrap();
                json!({ "rows_affected": changed, "last_insert_id": database.last_insert_rowid() })
            });
        }
        results
    }

    fn any(random: &mut Random, next: i64) -> Action {
        let (key, n) = (random.number_below(3), random.number_below(60));
        let amount = i64::try_from(n).unwrap();
        match random.below(16) {
            0 => Action::Add { key, amount },
            1 => Action::Append { key, value: next },
            2 => Action::Cas {
                key,
                from: next - 5,
                to: next,
            },
            3 => Action::Create { key },
            4 => Action::Clear { key },
            5 => Action::Drop { key },
            6 => Action::Fill {
                key,
                rows: 3,
                bytes: amount + 1,
            },
            7 => Action::Insert { key, value: next },
            8 => Action::ReadAccounts,
            9 => Action::ReadCounter(key),
            10 => Action::ReadFilled(key),
            11 => Action::ReadList(key),
            12 => Action::ReadRegister(key),
            13 => Action::ReadSet(key),
            14 => Action::ReadTables,
            _ if next % 2 == 0 => Action::Set { key, value: next },
            _ => Action::Transfer {
                from: key,
                to: (key + 1 + n % (ACCOUNTS - 1)) % ACCOUNTS,
                amount,
            },
        }
    }

    #[test]
    fn the_model_answers_as_sqlite_does() {
        let mut random = Random::new(7);
        let database = rusqlite::Connection::open_in_memory().unwrap();
        for statement in SCHEMA {
            database.execute_batch(statement).unwrap();
        }
        let mut model = Model::default();
        let mut filled = std::collections::HashSet::new();
        let mut done = 0;
        for next in 0..2000 {
            let action = any(&mut random, next);
            // The same rows twice would be an error, and clients do not do it.
            if let Action::Fill { key, .. } = action
                && !filled.insert(key)
            {
                continue;
            }
            if let Action::Clear { key } = action {
                filled.remove(&key);
            }
            let Some(expected) = model.apply(&action) else {
                continue;
            };
            let actions = [action];
            if actions[0].is_read() {
                let results = run(&database, &read(&actions));
                let (place, answers) = understand_read(&actions, &results[0]).unwrap();
                assert_eq!(answers, [expected], "{actions:?}");
                assert_eq!(place, done);
            } else {
                let results = run(&database, &write(&actions, Some(7)));
                let (place, answers) = understand_write(&actions, true, &results).unwrap();
                assert_eq!(answers, [expected], "{actions:?}");
                done += 1;
                assert_eq!(place, Some(done));
            }
        }
        assert!(done > 300);
    }
}

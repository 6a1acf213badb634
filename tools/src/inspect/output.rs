//! What is found is shown in one of two forms: text for people, in columns; or JSON, one object a
//! line. Both are made from the same rows, so neither says more than the other.

use std::io::Write;

use serde_json::{Map, Value as Json, json};

use super::Shown;

/// A field's value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    /// It is not there.
    Absent,
    Flag(bool),
    List(Vec<Self>),
    Number(u64),
    /// Text form, and the JSON that says the same and more.
    Rich(String, Json),
    Signed(i64),
    Text(String),
}

impl Value {
    fn json(&self) -> Json {
        match self {
            Self::Absent => Json::Null,
            Self::Flag(flag) => json!(flag),
            Self::List(values) => values.iter().map(Self::json).collect(),
            Self::Number(number) => json!(number),
            Self::Rich(_, json) => json.clone(),
            Self::Signed(number) => json!(number),
            Self::Text(text) => json!(text),
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Absent => "-".to_owned(),
            Self::Flag(flag) => if *flag { "yes" } else { "no" }.to_owned(),
            Self::List(values) => {
                let texts: Vec<String> = values.iter().map(Self::text).collect();
                texts.join(", ")
            }
            Self::Number(number) => number.to_string(),
            Self::Signed(number) => number.to_string(),
            Self::Rich(text, _) | Self::Text(text) => printable(text),
        }
    }

    const fn is_number(&self) -> bool {
        matches!(self, Self::Number(_) | Self::Signed(_) | Self::Absent)
    }
}

/// Nothing of a file's content may move the cursor of a terminal.
fn printable(text: &str) -> String {
    let show = |c: char| {
        if c.is_control() {
            c.escape_default().collect::<String>()
        } else {
            c.to_string()
        }
    };
    text.chars().map(show).collect()
}

impl From<bool> for Value {
    fn from(flag: bool) -> Self {
        Self::Flag(flag)
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Signed(number)
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Number(number)
    }
}

impl From<u32> for Value {
    fn from(number: u32) -> Self {
        Self::Number(number.into())
    }
}

impl From<u16> for Value {
    fn from(number: u16) -> Self {
        Self::Number(number.into())
    }
}

impl From<usize> for Value {
    fn from(number: usize) -> Self {
        Self::Number(number as u64)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl<T: Into<Self>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Absent, Into::into)
    }
}

impl<T: Into<Self>> From<Vec<T>> for Value {
    fn from(values: Vec<T>) -> Self {
        Self::List(values.into_iter().map(Into::into).collect())
    }
}

/// How a row is coloured, where colours are.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) enum Tone {
    Added,
    Bad,
    Faint,
    #[default]
    Plain,
    Removed,
}

/// One object: of a kind, with named fields.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Row {
    pub(super) kind: &'static str,
    pub(super) fields: Vec<(&'static str, Value)>,
    pub(super) tone: Tone,
}

impl Row {
    pub(super) fn new(kind: &'static str) -> Self {
        Self {
            kind,
            fields: Vec::new(),
            tone: Tone::Plain,
        }
    }

    pub(super) fn with(mut self, name: &'static str, value: impl Into<Value>) -> Self {
        self.fields.push((name, value.into()));
        self
    }

    pub(super) fn toned(mut self, tone: Tone) -> Self {
        self.tone = tone;
        self
    }
}

/// The form of the output.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Form {
    /// One JSON object a line.
    Json,
    /// Columns.
    Text {
        /// With escape sequences of a terminal.
        colour: bool,
    },
}

/// Shows rows, and remembers whether there was a reason to worry.
pub(super) struct Printer<'a> {
    out: &'a mut dyn Write,
    form: Form,
    /// Rows of the table that is being collected.
    table: Vec<Row>,
    /// Of the same table, as far as it was written already.
    widths: Vec<usize>,
    /// The kind of the table that was written last, and whether anything was.
    last: Option<&'static str>,
    /// Rows that are kept instead of being shown.
    kept: Option<Vec<Row>>,
    found: bool,
}

impl<'a> Printer<'a> {
    /// Writes to `out` in this form.
    pub(super) fn new(out: &'a mut dyn Write, form: Form) -> Self {
        Self {
            out,
            form,
            table: Vec::new(),
            widths: Vec::new(),
            last: None,
            kept: None,
            found: false,
        }
    }

    /// Has rows kept, from here on.
    pub(super) fn keep(&mut self) {
        self.kept = Some(Vec::new());
    }

    /// The rows that were kept; from here on they are shown again.
    pub(super) fn kept(&mut self) -> Vec<Row> {
        self.kept.take().unwrap_or_default()
    }

    /// Whether damage or a difference was shown.
    pub(super) fn found(&self) -> bool {
        self.found
    }

    /// Writes what is still held back.
    pub(super) fn finish(&mut self) -> Shown<()> {
        self.flush()?;
        Ok(self.out.flush()?)
    }

    /// One object, a field a line.
    pub(super) fn facts(&mut self, row: &Row) -> Shown<()> {
        if let Some(kept) = &mut self.kept {
            kept.push(row.clone());
            return Ok(());
        }
        self.flush()?;
        let Form::Text { colour } = self.form else {
            return self.line(row);
        };
        if self.last.is_some() {
            writeln!(self.out)?;
        }
        self.last = Some("");
        writeln!(self.out, "{}", paint(row.kind, BOLD, colour))?;
        let width = row.fields.iter().map(|field| field.0.len()).max();
        let width = width.unwrap_or(0);
        for (name, value) in &row.fields {
            let text = value.text();
            let text = match row.tone {
                Tone::Bad => paint(&text, RED, colour),
                _ => text,
            };
            writeln!(self.out, "  {:width$}  {text}", name.replace('_', " "))?;
        }
        Ok(())
    }

    /// One object of many, as a line of a table.
    pub(super) fn row(&mut self, row: Row) -> Shown<()> {
        if let Some(kept) = &mut self.kept {
            kept.push(row);
            return Ok(());
        }
        if self.form == Form::Json {
            return self.line(&row);
        }
        let fits = |last: &Row| {
            let names = |row: &Row| row.fields.iter().map(|field| field.0).collect::<Vec<_>>();
            last.kind == row.kind && names(last) == names(&row)
        };
        if self.table.last().is_some_and(|last| !fits(last)) {
            self.flush()?;
        }
        self.table.push(row);
        if self.table.len() >= ROWS_HELD {
            self.write_table()?;
        }
        Ok(())
    }

    /// Something to know about what is shown.
    pub(super) fn note(&mut self, text: impl AsRef<str>) -> Shown<()> {
        self.remark("note", text.as_ref(), YELLOW)
    }

    /// Damage. The exit code tells of it.
    pub(super) fn damage(&mut self, text: impl AsRef<str>) -> Shown<()> {
        self.found = true;
        self.remark("damage", text.as_ref(), RED)
    }

    /// A difference. The exit code tells of it.
    pub(super) fn differ(&mut self) {
        self.found = true;
    }

    fn remark(&mut self, kind: &'static str, text: &str, colour_code: &str) -> Shown<()> {
        self.flush()?;
        let Form::Text { colour } = self.form else {
            return self.line(&Row::new(kind).with("text", text));
        };
        self.last = Some("");
        writeln!(
            self.out,
            "{}: {}",
            paint(kind, colour_code, colour),
            printable(text)
        )?;
        Ok(())
    }

    fn line(&mut self, row: &Row) -> Shown<()> {
        let mut object = Map::new();
        object.insert("kind".to_owned(), json!(row.kind));
        for (name, value) in &row.fields {
            object.insert((*name).to_owned(), value.json());
        }
        writeln!(self.out, "{}", Json::Object(object))?;
        Ok(())
    }

    fn flush(&mut self) -> Shown<()> {
        self.write_table()?;
        self.widths.clear();
        Ok(())
    }

    /// Writes the rows that are held back; the table may go on.
    fn write_table(&mut self) -> Shown<()> {
        let Form::Text { colour } = self.form else {
            return Ok(());
        };
        let rows = std::mem::take(&mut self.table);
        let Some(first) = rows.first() else {
            return Ok(());
        };
        let names = first.fields.iter().map(|field| field.0.replace('_', " "));
        let names: Vec<String> = names.collect();
        let texts = |row: &Row| row.fields.iter().map(|field| field.1.text()).collect();
        let cells: Vec<Vec<String>> = rows.iter().map(texts).collect();
        let is_new = self.widths.is_empty();
        if is_new {
            self.widths = names.iter().map(String::len).collect();
        }
        for line in &cells {
            for (width, cell) in self.widths.iter_mut().zip(line) {
                *width = (*width).max(cell.chars().count()).min(COLUMN_CHARS_MAX);
            }
        }
        let right: Vec<bool> = (0..names.len())
            .map(|column| rows.iter().all(|row| row.fields[column].1.is_number()))
            .collect();
        if is_new {
            if self.last.is_some() {
                writeln!(self.out)?;
            }
            writeln!(self.out, "{}", paint(first.kind, BOLD, colour))?;
            let line = self.aligned(&names, &right);
            writeln!(self.out, "{}", paint(&line, FAINT, colour))?;
        }
        self.last = Some(first.kind);
        for (row, cells) in rows.iter().zip(&cells) {
            let line = self.aligned(cells, &right);
            let code = match row.tone {
                Tone::Added => GREEN,
                Tone::Bad | Tone::Removed => RED,
                Tone::Faint => FAINT,
                Tone::Plain => "",
            };
            writeln!(self.out, "{}", paint(&line, code, colour))?;
        }
        Ok(())
    }

    fn aligned(&self, cells: &[String], right: &[bool]) -> String {
        let mut line = String::new();
        for ((cell, width), right) in cells.iter().zip(&self.widths).zip(right) {
            line.push_str("  ");
            let gap = " ".repeat(width.saturating_sub(cell.chars().count()));
            if *right {
                line.push_str(&gap);
            }
            line.push_str(cell);
            if !*right {
                line.push_str(&gap);
            }
        }
        line.trim_end().to_owned()
    }
}

fn paint(text: &str, code: &str, colour: bool) -> String {
    if colour && !code.is_empty() {
        format!("\x1b[{code}m{text}\x1b[0m")
    } else {
        text.to_owned()
    }
}

/// 32 hexadecimal digits.
pub(super) fn hex128(number: u128) -> String {
    format!("{number:032x}")
}

/// Bytes as hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        // A String takes everything.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// A table is written in pieces of so many rows, so that a long one needs no memory.
const ROWS_HELD: usize = 1000;
/// A wider cell is not cut, but does not push the others away either.
const COLUMN_CHARS_MAX: usize = 60;

const BOLD: &str = "1";
const FAINT: &str = "2";
const GREEN: &str = "32";
const RED: &str = "31";
const YELLOW: &str = "33";

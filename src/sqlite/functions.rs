//! A few of SQLite's functions take as long as the product of two of their arguments, within one
//! instruction of its virtual machine, which nothing can interrupt: `instr` of two texts of 32 MiB
//! takes hours. They are replaced by ones that refuse what would take longer than about a second,
//! and have the rest computed by SQLite's own, on a connection without a database.

use std::ffi::{CStr, CString};

use rusqlite::Connection;
use rusqlite::limits::Limit;

use super::limits::Limits;
use super::raw::{self, Failure, Prepared};

/// One such function.
#[derive(Debug)]
struct Slow {
    name: &'static CStr,
    arguments: u8,
    /// The most that the product of the first two arguments' lengths in bytes may be: about a
    /// second's work, as measured.
    product_max: u64,
    /// Its texts nest in other functions' results as JSON.
    is_json: bool,
}

const fn slow(name: &'static CStr, arguments: u8, product_max: u64) -> Slow {
    Slow {
        name,
        arguments,
        product_max,
        is_json: false,
    }
}

/// `LIKE` and `GLOB` are not among them: their patterns have a bound, and SQLite would no longer
/// use an index for them.
const SLOW: [Slow; 8] = [
    slow(c"instr", 2, 1 << 36),
    slow(c"replace", 3, 1 << 36),
    slow(c"trim", 2, 1 << 28),
    slow(c"ltrim", 2, 1 << 28),
    slow(c"rtrim", 2, 1 << 28),
    slow(c"unhex", 2, 1 << 28),
    slow(c"jsonb_patch", 2, 1 << 34),
    Slow {
        is_json: true,
        ..slow(c"json_patch", 2, 1 << 34)
    },
];

/// A function as the connection knows it.
#[derive(Debug)]
pub(crate) struct Delegate {
    slow: &'static Slow,
    value_bytes_max: i32,
    /// Made at the first call; most connections never need it.
    calculator: Option<Calculator>,
}

/// SQLite's own function on a connection of its own. The order matters: statements go first.
#[derive(Debug)]
struct Calculator {
    statement: Prepared,
    _connection: Connection,
}

impl Delegate {
    pub(crate) fn name(&self) -> &'static CStr {
        self.slow.name
    }

    pub(crate) fn argument_count(&self) -> u8 {
        self.slow.arguments
    }

    pub(crate) fn is_json(&self) -> bool {
        self.slow.is_json
    }

    /// Why arguments of these lengths in bytes are refused, if they are.
    pub(crate) fn refuses(&self, first: u64, second: u64) -> Option<String> {
        let name = self.slow.name.to_string_lossy();
        (first.saturating_mul(second) > self.slow.product_max)
            .then(|| format!("{name}() of values as long as these would take too long"))
    }

    /// `SELECT function(?1, ...)`.
    ///
    /// # Errors
    /// SQLite is out of memory.
    pub(crate) fn statement(&mut self) -> Result<&mut Prepared, Failure> {
        if self.calculator.is_none() {
            self.calculator = Some(Calculator::new(self.slow, self.value_bytes_max)?);
        }
        let calculator = self.calculator.as_mut();
        Ok(&mut calculator.expect("it was just made").statement)
    }
}

impl Calculator {
    fn new(slow: &Slow, value_bytes_max: i32) -> Result<Self, Failure> {
        let connection = Connection::open_in_memory()?;
        connection.set_limit(Limit::SQLITE_LIMIT_LENGTH, value_bytes_max)?;
        let marks = vec!["?"; usize::from(slow.arguments)].join(",");
        let sql = format!("SELECT {}({marks})", slow.name.to_string_lossy());
        let sql = CString::new(sql).expect("a name without NUL");
        let (statement, _) = Prepared::new(&connection, &sql, 0)?;
        Ok(Self {
            statement: statement.expect("it is not blank"),
            _connection: connection,
        })
    }
}

/// Replaces the functions on this connection.
///
/// # Errors
/// SQLite is out of memory.
pub(crate) fn install(connection: &Connection, limits: &Limits) -> Result<(), Failure> {
    for slow in &SLOW {
        let delegate = Delegate {
            slow,
            value_bytes_max: limits.value_bytes_max,
            calculator: None,
        };
        raw::install_function(connection, Box::new(delegate))?;
    }
    Ok(())
}

//! What clients did, when, and what they were told: the input of the checkers.
//!
//! A request is a few small actions on tables that everybody shares. Each request that changes
//! something also adds a row to a journal, in the same transaction: the number of that row is the
//! place of the request among all others, as the database itself has it. A read asks for the last
//! number together with the data. Requests without such a row use keys of their own
//! ([`Operation::is_journalled`]).

mod action;
mod model;
mod operation;
mod request;

pub use action::{ACCOUNTS, Action, Answer, BALANCE, Thing};
pub use model::Model;
pub use operation::{Fate, Level, Operation, Reach};
pub use request::{SCHEMA, read, understand_read, understand_write, write};

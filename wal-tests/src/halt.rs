//! Nodes that stop in their tracks at a line of their log, so that a test can look at their files,
//! change them or kill the node at exactly this step.
//!
//! `node_with_faults` logs through [`Log`]. A line that [`Halt`] names stops its own process by
//! SIGSTOP: at the start of the process by the variable [`VARIABLE`], later by a line on its control
//! socket.

use std::fmt;
use std::io::{self, Write};
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Signal, getpid, kill_process};

use crate::cluster::ProcessCluster;
use crate::faulty_cluster::control;

/// Names the halt of a process that is started.
pub const VARIABLE: &str = "WAL_HALT_AT";

/// The how-manyth line, from 1, that contains a text.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Halt {
    /// From 1.
    pub number: usize,
    /// What the line contains.
    pub text: String,
}

impl Halt {
    /// The how-manyth line, from 1, with this text.
    #[must_use]
    pub fn at(number: usize, text: &str) -> Self {
        let text = text.to_owned();
        Self { number, text }
    }
}

impl fmt::Display for Halt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.number, self.text)
    }
}

impl FromStr for Halt {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let halt = text.split_once(' ').and_then(|(number, text)| {
            let number = number.parse().ok().filter(|number| *number > 0)?;
            Some(Self::at(number, text))
        });
        halt.ok_or_else(|| format!("{text:?} is not a place to halt at"))
    }
}

static ARMED: Mutex<Option<Halt>> = Mutex::new(None);

/// This process halts there, once.
pub fn arm(halt: Halt) {
    *ARMED.lock().unwrap_or_else(PoisonError::into_inner) = Some(halt);
}

/// Standard error, with an eye on what is written.
#[derive(Debug)]
pub struct Log;

impl Write for Log {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        io::stderr().write_all(line)?;
        if is_reached(&String::from_utf8_lossy(line)) {
            kill_process(getpid(), Signal::STOP)?;
            // Another thread may be the one that takes the signal.
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn is_reached(line: &str) -> bool {
    let mut armed = ARMED.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(halt) = armed.as_mut().filter(|halt| line.contains(&halt.text)) else {
        return false;
    };
    halt.number -= 1;
    let is_reached = halt.number == 0;
    if is_reached {
        *armed = None;
    }
    is_reached
}

/// Starts a node and waits until it has halted. It counts as paused from then on.
///
/// # Panics
///
/// When it does not get there.
#[track_caller]
pub fn start(cluster: &mut ProcessCluster, node: usize, halt: &Halt) {
    cluster.set_variable(VARIABLE, &halt.to_string());
    cluster.start_node(node);
    cluster.set_variable(VARIABLE, "");
    wait(cluster, node, halt);
}

/// Has a node that runs halt there.
///
/// # Panics
///
/// When the node does not take it.
#[track_caller]
pub fn arm_running(cluster: &ProcessCluster, node: usize, halt: &Halt) {
    let answer = control(cluster, node, &format!("halt {halt}"));
    assert_eq!(answer.as_deref(), Some("ok"));
}

/// Waits until a node has halted. It counts as paused from then on.
///
/// # Panics
///
/// When it does not get there.
#[track_caller]
pub fn wait(cluster: &mut ProcessCluster, node: usize, halt: &Halt) {
    let stat = format!("/proc/{}/stat", cluster.process_id(node));
    cluster.wait(&format!("a halt at {halt}"), |_| {
        let stat = std::fs::read_to_string(&stat).map_err(|error| error.to_string())?;
        // The state is behind the name, which is in parentheses.
        let state = stat.rsplit_once(") ").map(|(_, rest)| &rest[..1]);
        match state {
            Some("T") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    cluster.pause(node);
}

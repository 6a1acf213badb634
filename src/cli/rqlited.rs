//! The flags of rqlited that nothing here answers to, so that its command lines work unchanged.
//!
//! A flag that means nothing here is accepted, and one line of log says so. A flag of something
//! that is not built yet is accepted with its default value only: whoever asks for a backup and
//! gets none has to learn it at once. How a flag is classed is data: [`ROWS`].

use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command};

use crate::cli::config::ConfigError;
use crate::cli::flags::{span, switch};

/// What was given of these flags.
#[derive(Clone, Debug, Default)]
pub(crate) struct RqlitedFlags {
    given: Vec<(&'static Row, String)>,
}

/// A flag that was accepted although it does nothing.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct WithoutEffect {
    /// Its name, without dashes.
    pub(crate) flag: &'static str,
    /// Why it does nothing.
    pub(crate) reason: &'static str,
}

/// One flag.
#[derive(Debug)]
struct Row {
    name: &'static str,
    default: &'static str,
    kind: Kind,
    class: Class,
}

/// What its value looks like.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kind {
    Duration,
    Switch,
    Text,
}

/// What becomes of it.
#[derive(Clone, Copy, Debug)]
enum Class {
    /// Accepted: the reason why it means nothing here.
    NoEffect(&'static str),
    /// Refused unless it has its default value: what is not built yet.
    Unbuilt(&'static str),
}

impl RqlitedFlags {
    /// Refuses what is not built yet; first what would make no sense in rqlited either, in its
    /// words. `joins`: -join is given; `expects`: -bootstrap-expect is; `has_vote`: -raft-non-voter
    /// is not.
    pub(crate) fn check(
        &self,
        joins: bool,
        expects: bool,
        has_vote: bool,
    ) -> Result<(), ConfigError> {
        let contradictions = [
            (
                expects && !has_vote,
                "bootstrapping only applicable to voting nodes",
            ),
            (
                self.value("cdc-config").is_some() && !has_vote,
                "CDC cannot be enabled on non-voting nodes",
            ),
            (
                self.value("auto-restore").is_some() && joins,
                "auto-restoring cannot be used when joining a cluster",
            ),
        ];
        if let Some((_, sentence)) = contradictions.into_iter().find(|(holds, _)| *holds) {
            return Err(ConfigError::Together(sentence));
        }
        let unbuilt = self.asked().find_map(|(row, _)| match row.class {
            Class::Unbuilt(what) => Some((row.name, what)),
            Class::NoEffect(_) => None,
        });
        match unbuilt {
            Some((flag, what)) => Err(ConfigError::Flag {
                flag,
                problem: format!("{what} is not built yet; start without it"),
            }),
            None => Ok(()),
        }
    }

    /// The value of a flag that was given with another value than its default.
    fn value(&self, name: &str) -> Option<&str> {
        let mut asked = self.asked().filter(|(row, _)| row.name == name);
        asked.next().map(|(_, value)| value.as_str())
    }

    /// The flags that were given and mean nothing here.
    pub(crate) fn without_effect(&self) -> Vec<WithoutEffect> {
        let given = self.given.iter().filter_map(|(row, _)| match row.class {
            Class::NoEffect(reason) => Some(WithoutEffect {
                flag: row.name,
                reason,
            }),
            Class::Unbuilt(_) => None,
        });
        given.collect()
    }

    fn asked(&self) -> impl Iterator<Item = &(&'static Row, String)> {
        self.given.iter().filter(|(row, value)| row.differs(value))
    }
}

impl Row {
    /// Whether a value means something else than the default.
    fn differs(&self, value: &str) -> bool {
        match self.kind {
            Kind::Duration => span(value) != span(self.default),
            Kind::Switch => switch(value) != switch(self.default),
            Kind::Text => value != self.default,
        }
    }

    fn argument(&self) -> Arg {
        let (heading, help) = match self.class {
            Class::NoEffect(reason) => (WITHOUT_EFFECT, format!("Accepted: {reason}")),
            Class::Unbuilt(what) => (UNBUILT, format!("{what} is not built yet")),
        };
        let argument = Arg::new(self.name).long(self.name).help(help);
        let argument = argument.help_heading(heading);
        let argument = match self.kind {
            Kind::Duration => argument.value_name("DURATION").value_parser(duration),
            Kind::Switch => argument
                .value_name("BOOL")
                .num_args(0..=1)
                .require_equals(true)
                .default_missing_value("true")
                .value_parser(boolean),
            Kind::Text => argument.value_name("TEXT"),
        };
        if self.default.is_empty() {
            argument
        } else {
            argument.default_value(self.default)
        }
    }
}

impl clap::Args for RqlitedFlags {
    fn augment_args(command: Command) -> Command {
        command.args(ROWS.iter().map(Row::argument))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl clap::FromArgMatches for RqlitedFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut flags = Self::default();
        flags.update_from_arg_matches(matches)?;
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        for row in &ROWS {
            if matches.value_source(row.name) == Some(ValueSource::CommandLine)
                && let Some(value) = matches.get_one::<String>(row.name)
            {
                self.given.push((row, value.clone()));
            }
        }
        Ok(())
    }
}

fn duration(text: &str) -> Result<String, String> {
    if text.starts_with('-') {
        return Err("must be greater than 0 if given".to_owned());
    }
    span(text).map(|_| text.to_owned())
}

fn boolean(text: &str) -> Result<String, String> {
    switch(text).map(|_| text.to_owned())
}

const fn row(name: &'static str, default: &'static str, kind: Kind, class: Class) -> Row {
    Row {
        name,
        default,
        kind,
        class,
    }
}

const WITHOUT_EFFECT: &str = "Accepted for rqlited's sake, without effect";
const UNBUILT: &str = "Not built yet, refused when asked for";

const AUTO_BACKUP: Class = Class::Unbuilt("automatic backup");
const AUTO_RESTORE: Class = Class::Unbuilt("automatic restore");
const CDC: Class = Class::Unbuilt("change data capture");
const METRICS: Class = Class::Unbuilt("pushing metrics");

const PROFILES: Class =
    Class::NoEffect("there is no Go runtime to be profiled; perf and its kind need no flag");

#[rustfmt::skip]
static ROWS: [Row; 18] = [
    row("auto-backup", "", Kind::Text, AUTO_BACKUP),
    row("auto-restore", "", Kind::Text, AUTO_RESTORE),
    row("cdc-config", "", Kind::Text, CDC),
    row("cluster-connect-timeout", "30s", Kind::Duration, Class::NoEffect(
        "attempts to connect are short, and repeated for as long as they are needed")),
    row("compress-snap-transport", "false", Kind::Switch, Class::NoEffect(
        "a node that lags receives only the pages that differ")),
    row("cpu-profile", "", Kind::Text, PROFILES),
    row("mem-profile", "", Kind::Text, PROFILES),
    row("otlp-ca-cert", "", Kind::Text, METRICS),
    row("otlp-cert", "", Kind::Text, METRICS),
    row("otlp-endpoint", "", Kind::Text, METRICS),
    row("otlp-insecure", "false", Kind::Switch, METRICS),
    row("otlp-interval", "30s", Kind::Duration, METRICS),
    row("otlp-key", "", Kind::Text, METRICS),
    row("otlp-no-verify", "false", Kind::Switch, METRICS),
    row("raft-apply-timeout", "10s", Kind::Duration, Class::NoEffect(
        "each request says how long it waits, by its parameter `timeout`")),
    row("raft-commit-timeout", "50ms", Kind::Duration, Class::NoEffect(
        "followers learn of a commit with the next entry or heartbeat")),
    row("raft-leader-lease-timeout", "0s", Kind::Duration, Class::NoEffect(
        "the lease of a leader follows from -raft-election-timeout")),
    row("trace-profile", "", Kind::Text, PROFILES),
];

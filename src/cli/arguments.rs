//! rqlited's flag style, translated into the one clap understands: one or two dashes, `-flag value`
//! or `-flag=value`, switches without a value, and the data directory as the last argument.

use std::ffi::OsString;

/// Why the command line cannot be read. The process ends with exit code 2.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum ArgumentError {
    /// rqlited's rule, in its words: a flag behind the data directory would silently not apply.
    #[error("arguments after data directory ({0}) are not accepted")]
    AfterDataDirectory(String),
    /// A flag that needs a value is the last argument.
    #[error("flag needs an argument: -{0}")]
    NoValue(String),
    /// The argument is not valid UTF-8 and therefore no flag of ours.
    #[error("flag is not valid UTF-8: {0}")]
    NotUtf8(String),
    /// No such flag.
    #[error("unknown flag -{name} for `wallaby {command}`{}", suggestion(nearest))]
    UnknownFlag {
        /// The sub-command.
        command: String,
        /// The flag as given, without dashes.
        name: String,
        /// The known flag that looks most like it, if any does.
        nearest: Option<String>,
    },
}

/// Returns the arguments (without the program's name) in clap's style, with `serve` put in front
/// where no sub-command is named: users of rqlited change the binary and nothing else.
pub(crate) fn normalise(
    arguments: Vec<OsString>,
    program: &clap::Command,
) -> Result<Vec<OsString>, ArgumentError> {
    let mut rest = arguments.into_iter().peekable();
    let Some(first) = rest.peek().and_then(|first| first.to_str()) else {
        return Ok(rest.collect());
    };
    if ["-h", "-help", "--help", "help"].contains(&first) {
        return Ok(vec!["--help".into()]);
    }
    if ["-version", "--version", "-V"].contains(&first) {
        return Ok(vec!["version".into()]);
    }
    let named = program.find_subcommand(first);
    if named.is_some() {
        rest.next();
    }
    let command = named
        .or_else(|| program.find_subcommand("serve"))
        .expect("serve is declared");
    let mut normalised = vec![OsString::from(command.get_name())];
    let mut positional = Vec::new();
    while let Some(argument) = rest.next() {
        let text = argument.to_string_lossy().into_owned();
        if text == "--" {
            positional.extend(rest);
            break;
        }
        if !text.starts_with('-') || text == "-" {
            positional.push(argument);
            positional.extend(rest);
            break;
        }
        if argument.to_str().is_none() {
            return Err(ArgumentError::NotUtf8(text));
        }
        normalised.push(flag(&text, command, &mut rest)?);
    }
    if command.get_name() == "serve" && positional.len() > 1 {
        let behind: Vec<_> = positional[1..]
            .iter()
            .map(|each| each.to_string_lossy())
            .collect();
        return Err(ArgumentError::AfterDataDirectory(behind.join(" ")));
    }
    normalised.push("--".into());
    normalised.extend(positional);
    Ok(normalised)
}

/// One flag in the form `--name=value`, or `--name` for a switch without a value. The value, where
/// it is the next argument, is taken from `rest` even if it starts with a dash.
fn flag(
    text: &str,
    command: &clap::Command,
    rest: &mut impl Iterator<Item = OsString>,
) -> Result<OsString, ArgumentError> {
    let bare = text
        .strip_prefix("--")
        .or_else(|| text.strip_prefix('-'))
        .unwrap_or(text);
    let (name, value) = match bare.split_once('=') {
        Some((name, value)) => (name, Some(OsString::from(value))),
        None => (bare, None),
    };
    if name == "h" || name == "help" {
        return Ok("--help".into());
    }
    let Some(known) = command
        .get_arguments()
        .find(|each| each.get_long() == Some(name))
    else {
        return Err(ArgumentError::UnknownFlag {
            command: command.get_name().to_owned(),
            name: name.to_owned(),
            nearest: nearest(name, command),
        });
    };
    let value = match value {
        None if known.is_require_equals_set() => None,
        None => Some(
            rest.next()
                .ok_or_else(|| ArgumentError::NoValue(name.to_owned()))?,
        ),
        given => given,
    };
    let mut normalised = OsString::from(format!("--{name}"));
    if let Some(value) = value {
        normalised.push("=");
        normalised.push(value);
    }
    Ok(normalised)
}

/// The known flag with the smallest edit distance to `name`, unless more than half of it differs.
fn nearest(name: &str, command: &clap::Command) -> Option<String> {
    command
        .get_arguments()
        .filter(|each| !each.is_hide_set())
        .filter_map(clap::Arg::get_long)
        .map(|known| (edit_distance(name, known), known))
        .min()
        .filter(|(distance, known)| distance * 2 <= known.len())
        .map(|(_, known)| known.to_owned())
}

/// How many characters must be put in, taken out or replaced to turn `from` into `to`.
fn edit_distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (line, wanted) in from.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = line + 1;
        for (column, found) in to.iter().enumerate() {
            let replaced = diagonal + usize::from(wanted != *found);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[to.len()]
}

/// The half-sentence that names the nearest flag.
fn suggestion(nearest: &Option<String>) -> String {
    nearest
        .as_ref()
        .map_or_else(String::new, |known| format!("; did you mean -{known}?"))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::flags::CommandLine;

    fn check(given: &[&str], expected: Result<&[&str], &str>) {
        let arguments = given.iter().map(OsString::from).collect();
        let found = normalise(arguments, &CommandLine::command());
        let expected: Result<Vec<OsString>, String> = expected
            .map(|words| words.iter().map(OsString::from).collect())
            .map_err(str::to_owned);
        assert_eq!(
            found.map_err(|error| error.to_string()),
            expected,
            "given {given:?}"
        );
    }

    #[test]
    fn one_dash_and_two_dashes_mean_the_same() {
        let expected: &[&str] = &["serve", "--node-id=1", "--", "data"];
        check(&["serve", "-node-id", "1", "data"], Ok(expected));
        check(&["serve", "--node-id", "1", "data"], Ok(expected));
        check(&["serve", "-node-id=1", "data"], Ok(expected));
        check(&["serve", "--node-id=1", "data"], Ok(expected));
    }

    #[test]
    fn serve_is_understood_without_being_named() {
        check(
            &["-node-id", "1", "data"],
            Ok(&["serve", "--node-id=1", "--", "data"]),
        );
        check(&["data"], Ok(&["serve", "--", "data"]));
    }

    #[test]
    fn a_switch_takes_a_value_only_behind_an_equals_sign() {
        check(&["-fk", "data"], Ok(&["serve", "--fk", "--", "data"]));
        check(
            &["-fk=true", "data"],
            Ok(&["serve", "--fk=true", "--", "data"]),
        );
        check(
            &["--fk=false", "data"],
            Ok(&["serve", "--fk=false", "--", "data"]),
        );
        let behind = "arguments after data directory (data) are not accepted";
        check(&["-fk", "false", "data"], Err(behind));
    }

    #[test]
    fn the_data_directory_must_be_last() {
        let behind = "arguments after data directory (-fk more) are not accepted";
        check(&["data", "-fk", "more"], Err(behind));
        check(&["--", "-data"], Ok(&["serve", "--", "-data"]));
    }

    #[test]
    fn an_unknown_flag_is_named_with_its_nearest_neighbour() {
        let message = "unknown flag -raft-adr for `wallaby serve`; did you mean -raft-addr?";
        check(&["-raft-adr", "x", "data"], Err(message));
        check(&["-raft-adr=x", "data"], Err(message));
        check(
            &["demo", "--onse"],
            Err("unknown flag -onse for `wallaby demo`; did you mean -once?"),
        );
        check(
            &["-zzzzzzzzzzzzzz", "data"],
            Err("unknown flag -zzzzzzzzzzzzzz for `wallaby serve`"),
        );
    }

    #[test]
    fn a_flag_at_the_end_without_its_value_is_refused() {
        check(&["-node-id"], Err("flag needs an argument: -node-id"));
    }

    #[test]
    fn a_value_may_start_with_a_dash() {
        check(
            &["-node-id", "-1", "data"],
            Ok(&["serve", "--node-id=-1", "--", "data"]),
        );
    }
}

//! Expected text: literal, except where `<<...>>` says what varies or what is known.

use std::collections::BTreeMap;

/// What is known under a name: addresses, paths, and what was kept of earlier answers.
pub(crate) type Names = BTreeMap<String, String>;

/// Text with holes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Pattern {
    pieces: Vec<Piece>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum Piece {
    Known {
        name: String,
        plus: u64,
    },
    Literal(String),
    Varies {
        class: Class,
        above: Option<String>,
        keep: Option<String>,
    },
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Class {
    Integer,
    Number,
    Seconds,
    Span,
    Text,
    Version,
}

/// Plain characters that an expectation needs around each text that varies, numbers and the like
/// apart, which are narrow by themselves.
const LITERAL_CHARS_MIN: usize = 8;

const TEXT_CHARS_MAX: usize = 200;

impl Pattern {
    /// Reads expected text.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("<<") {
            if !before.is_empty() {
                pieces.push(Piece::Literal(before.to_owned()));
            }
            let (inside, after) = after.split_once(">>").ok_or("`<<` without `>>`")?;
            let piece = hole(inside)?;
            let varies = |piece: &Piece| matches!(piece, Piece::Varies { .. });
            if varies(&piece) && pieces.last().is_some_and(varies) {
                return Err(format!("`<<{inside}>>` follows another directly"));
            }
            pieces.push(piece);
            rest = after;
        }
        if !rest.is_empty() {
            pieces.push(Piece::Literal(rest.to_owned()));
        }
        let pattern = Self { pieces };
        pattern.check_narrow()?;
        Ok(pattern)
    }

    fn check_narrow(&self) -> Result<(), String> {
        let texts = self.pieces.iter().filter(|piece| {
            matches!(
                piece,
                Piece::Varies {
                    class: Class::Text,
                    ..
                }
            )
        });
        let literal = self.pieces.iter().map(|piece| match piece {
            Piece::Literal(text) => text.chars().count(),
            _ => 0,
        });
        if literal.sum::<usize>() < texts.count() * LITERAL_CHARS_MIN {
            return Err("an expectation that would fit nearly everything".to_owned());
        }
        Ok(())
    }

    /// Matches text against the pattern and returns what is to be kept.
    pub(crate) fn matches(&self, text: &str, names: &Names) -> Result<Names, String> {
        let mut kept = Names::new();
        let mut rest = text;
        for piece in &self.pieces {
            match piece {
                Piece::Literal(literal) => {
                    rest = rest.strip_prefix(literal.as_str()).ok_or("differs")?;
                }
                Piece::Known { name, plus } => {
                    let known = known(name, *plus, names)?;
                    rest = rest.strip_prefix(known.as_str()).ok_or("differs")?;
                }
                Piece::Varies { class, above, keep } => {
                    let (found, after) = class.take(rest)?;
                    if let Some(above) = above {
                        let least: i128 = known(above, 0, names)?.parse().map_err(|_| "number")?;
                        let found: i128 = found.parse().map_err(|_| "number")?;
                        if found <= least {
                            return Err(format!("{found} is not above {least}"));
                        }
                    }
                    if let Some(name) = keep {
                        kept.insert(name.clone(), found.to_owned());
                    }
                    rest = after;
                }
            }
        }
        if rest.is_empty() {
            Ok(kept)
        } else {
            Err("something follows".to_owned())
        }
    }

    /// The text, where nothing varies: for requests.
    pub(crate) fn text(&self, names: &Names) -> Result<String, String> {
        let mut text = String::new();
        for piece in &self.pieces {
            match piece {
                Piece::Literal(literal) => text.push_str(literal),
                Piece::Known { name, plus } => text.push_str(&known(name, *plus, names)?),
                Piece::Varies { class, .. } => {
                    return Err(format!("a request cannot hold a {class:?}"));
                }
            }
        }
        Ok(text)
    }

    /// The pattern as a person would write it, with what is known filled in.
    pub(crate) fn shown(&self, names: &Names) -> String {
        let piece = |piece: &Piece| match piece {
            Piece::Literal(literal) => literal.clone(),
            Piece::Known { name, plus } => known(name, *plus, names).unwrap_or_else(|error| error),
            Piece::Varies { class, above, .. } => match above {
                Some(above) => format!("<<{class:?} above {above}>>"),
                None => format!("<<{class:?}>>"),
            },
        };
        self.pieces.iter().map(piece).collect()
    }
}

/// What stands between `<<` and `>>`.
fn hole(inside: &str) -> Result<Piece, String> {
    let (head, keep) = match inside.split_once(':') {
        Some((head, keep)) => (head, Some(keep.to_owned())),
        None => (inside, None),
    };
    let (word, above) = match head.split_once('>') {
        Some((word, above)) => (word, Some(above.to_owned())),
        None => (head, None),
    };
    let class = match word {
        "integer" => Some(Class::Integer),
        "number" => Some(Class::Number),
        "seconds" => Some(Class::Seconds),
        "span" => Some(Class::Span),
        "text" => Some(Class::Text),
        "version" => Some(Class::Version),
        _ => None,
    };
    if let Some(class) = class {
        if above.is_some() && !matches!(class, Class::Integer | Class::Number) {
            return Err(format!("`<<{inside}>>`: only numbers can be compared"));
        }
        return Ok(Piece::Varies { class, above, keep });
    }
    if keep.is_some() || above.is_some() || word.is_empty() {
        return Err(format!("`<<{inside}>>` is no class"));
    }
    let (name, plus) = match word.split_once('+') {
        Some((name, plus)) => (name, plus.parse().map_err(|_| format!("`<<{inside}>>`"))?),
        None => (word, 0),
    };
    Ok(Piece::Known {
        name: name.to_owned(),
        plus,
    })
}

fn known(name: &str, plus: u64, names: &Names) -> Result<String, String> {
    let value = names.get(name);
    let value = value.ok_or_else(|| format!("`{name}` is not known here"))?;
    if plus == 0 {
        return Ok(value.clone());
    }
    let number: u64 = value
        .parse()
        .map_err(|_| format!("`{name}` is no number"))?;
    Ok((number + plus).to_string())
}

impl Class {
    /// The longest beginning of `text` that is of this class, and the rest.
    fn take(self, text: &str) -> Result<(&str, &str), String> {
        let of = |wanted: fn(char) -> bool| {
            let end = text.find(|c| !wanted(c)).unwrap_or(text.len());
            text.split_at(end)
        };
        let (found, rest) = match self {
            Self::Number => of(|c| c.is_ascii_digit()),
            Self::Integer => of(|c| c.is_ascii_digit() || c == '-'),
            Self::Seconds => of(|c| c.is_ascii_digit() || ".e-".contains(c)),
            Self::Span => of(|c| c.is_ascii_digit() || ".hmns\u{b5}".contains(c)),
            Self::Version => of(|c| c.is_ascii_alphanumeric() || ".-".contains(c)),
            Self::Text => of(|c| !c.is_control() && !"\"{}".contains(c)),
        };
        let digit_first = found.starts_with(|c: char| c.is_ascii_digit());
        let good = match self {
            Self::Number => digit_first && !found.starts_with('0') && found.len() <= 20,
            Self::Integer => found.parse::<i64>().is_ok(),
            Self::Seconds => digit_first && found.parse::<f64>().is_ok_and(|time| time > 0.0),
            Self::Span => digit_first && found.ends_with(['s', 'h', 'm']),
            Self::Version => digit_first && found.contains('.'),
            Self::Text => !found.is_empty() && found.chars().count() <= TEXT_CHARS_MAX,
        };
        if good {
            Ok((found, rest))
        } else {
            Err(format!("no {self:?} at `{}`", head(text)))
        }
    }
}

/// The beginning of a text, for a message.
fn head(text: &str) -> &str {
    let end = text.char_indices().nth(40).map_or(text.len(), |(at, _)| at);
    &text[..end]
}

#[test]
fn what_varies_is_matched_narrowly() {
    let names = Names::from([("first".to_owned(), "7".to_owned())]);
    let fits = |pattern: &str, text: &str| {
        let pattern = Pattern::parse(pattern).unwrap();
        pattern.matches(text, &names).is_ok()
    };
    for (pattern, good, bad) in [
        ("{\"a\":<<number>>}", "{\"a\":5}", "{\"a\":0}"),
        ("{\"a\":<<number>>}", "{\"a\":50}", "{\"a\":-5}"),
        ("{\"a\":<<number>>}", "{\"a\":50}", "{\"a\":\"5\"}"),
        ("{\"a\":<<number>>}", "{\"a\":50}", "{\"a\":5,\"b\":1}"),
        ("{\"a\":<<number>>}", "{\"a\":50}", "{\"a\":5}\n"),
        ("{\"a\":<<number>first>>}", "{\"a\":8}", "{\"a\":7}"),
        ("{\"a\":<<first+1>>}", "{\"a\":8}", "{\"a\":9}"),
        ("{\"a\":<<integer>>}", "{\"a\":-8}", "{\"a\":8-}"),
        ("<<seconds>>", "0.000051", "0"),
        ("<<seconds>>", "1e-7", "e-7"),
        ("<<span>>", "33.149\u{b5}s", "33.149"),
        ("<<version>>", "10.3.0", "10"),
        ("the error: <<text>>", "the error: x y", "the error: "),
        ("the error: <<text>>", "the error: x y", "the error: x\ny"),
        (
            "{\"error\":\"<<text>>\"}",
            "{\"error\":\"x\"}",
            "{\"error\":\"x\",\"y\":\"z\"}",
        ),
        ("plain", "plain", "plainer"),
        ("plain", "plain", "plai"),
    ] {
        assert!(fits(pattern, good), "{pattern} {good}");
        assert!(!fits(pattern, bad), "{pattern} {bad}");
    }
}

#[test]
fn an_expectation_that_fits_everything_is_refused() {
    for wrong in [
        "<<text>>",
        "{<<text>>}",
        "<<number>><<number>>",
        "<<number",
        "<<>>",
        "<<nonsense:x>>",
        "<<text>first>>",
        "\"<<text>>\":\"<<text>>\"",
    ] {
        assert!(Pattern::parse(wrong).is_err(), "{wrong}");
    }
    let pattern = Pattern::parse("value <<unheard>>").unwrap();
    assert!(pattern.matches("value 5", &Names::new()).is_err());
}

#[test]
fn what_is_kept_can_be_used_later() {
    let pattern = Pattern::parse("{\"n\":<<number:first>>}").unwrap();
    let kept = pattern.matches("{\"n\":41}", &Names::new()).unwrap();
    let later = Pattern::parse("{\"n\":<<first+1>>}").unwrap();
    assert_eq!(later.text(&kept).unwrap(), "{\"n\":42}");
}

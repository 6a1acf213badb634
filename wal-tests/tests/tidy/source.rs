//! Rust sources as text: what is code, which paths it names, where functions and tests lie.

use std::collections::BTreeSet;

/// One Rust file.
pub(crate) struct Source {
    /// From the root of the repository, with `/`.
    pub(crate) path: String,
    pub(crate) raw: String,
    /// The same length and lines, with comments and the insides of literals blanked.
    pub(crate) code: String,
}

impl Source {
    pub(crate) fn new(path: &str, raw: &str) -> Self {
        Self {
            path: path.to_owned(),
            raw: raw.to_owned(),
            code: blank(raw),
        }
    }

    /// `wal` for `src/wal/page.rs`, `main` for `src/main.rs`; `None` outside of `src`.
    pub(crate) fn layer(&self) -> Option<&str> {
        let inside = self.path.strip_prefix("src/")?;
        Some(inside.split('/').next()?.trim_end_matches(".rs"))
    }

    pub(crate) fn line_at(&self, offset: usize) -> usize {
        1 + self.code[..offset].matches('\n').count()
    }

    /// Every path in the code, `use` trees expanded: the line and the segments.
    pub(crate) fn paths(&self) -> Vec<(usize, Vec<String>)> {
        let tokens = tokens(&self.code);
        let mut paths = Vec::new();
        let mut at = 0;
        while at < tokens.len() {
            if is_name(tokens[at].1) {
                let line = self.line_at(tokens[at].0);
                let mut found = Vec::new();
                at = expand(&tokens, at, &[], &mut found);
                paths.extend(found.into_iter().map(|path| (line, path)));
            } else {
                at += 1;
            }
        }
        paths
    }

    /// Whole-word occurrences of a name in the code: their offsets.
    pub(crate) fn words(&self, word: &str) -> Vec<usize> {
        let matches = tokens(&self.code)
            .into_iter()
            .filter(|(_, token)| *token == word);
        matches.map(|(offset, _)| offset).collect()
    }

    /// Each function with a body: line of `fn`, name, lines of code between its braces.
    pub(crate) fn functions(&self) -> Vec<(usize, String, usize)> {
        let mut functions = Vec::new();
        for offset in self.words("fn") {
            let rest = &self.code[offset + 2..];
            let name: String = rest
                .trim_start()
                .chars()
                .take_while(|c| c.is_alphanumeric() || *c == '_')
                .collect();
            if name.is_empty() {
                continue; // The type of a function pointer.
            }
            let Some(body) = body_after(rest) else {
                continue;
            };
            let lines = body.lines().filter(|line| !line.trim().is_empty()).count();
            functions.push((self.line_at(offset), name, lines));
        }
        functions
    }

    /// The code without modules that are only compiled for tests; offsets stay the same.
    /// A file `tests.rs` is such a module as a whole.
    pub(crate) fn code_without_tests(&self) -> String {
        if self.path.ends_with("/tests.rs") {
            return String::new();
        }
        let mut code = self.code.clone();
        for (offset, _) in self.code.match_indices("#[cfg(test)]") {
            let after = offset + "#[cfg(test)]".len();
            if !self.code[after..].trim_start().starts_with("mod ") {
                continue;
            }
            let Some(open) = self.code[after..].find('{') else {
                continue;
            };
            let Some(body) = body_after(&self.code[after..]) else {
                continue;
            };
            let begin = after + open + 1;
            code.replace_range(begin..begin + body.len(), &spaces(body));
        }
        code
    }

    /// The modules that this file declares in files of their own.
    pub(crate) fn modules(&self) -> BTreeSet<String> {
        let tokens = tokens(&self.code);
        let declared = tokens
            .windows(3)
            .filter(|w| w[0].1 == "mod" && w[2].1 == ";");
        declared.map(|w| w[1].1.to_owned()).collect()
    }
}

/// What stands between the next `{` and its `}`, if no `;` comes first (outside of brackets, so
/// that `[u8; 4]` in a signature does not count).
fn body_after(code: &str) -> Option<&str> {
    let mut brackets = 0_i32;
    let mut open = None;
    let mut depth = 0_i32;
    for (offset, character) in code.char_indices() {
        match character {
            '[' | '(' if open.is_none() => brackets += 1,
            ']' | ')' if open.is_none() => brackets -= 1,
            ';' if open.is_none() && brackets == 0 => return None,
            '{' => {
                if brackets == 0 {
                    open = open.or(Some(offset + 1));
                }
                depth += 1;
            }
            '}' => {
                depth -= 1;
                if depth == 0 && brackets == 0 {
                    return Some(&code[open?..offset]);
                }
            }
            _ => {}
        }
    }
    None
}

/// As many bytes and lines, and nothing in them.
fn spaces(text: &str) -> String {
    text.chars()
        .map(|character| match character {
            '\n' => "\n".to_owned(),
            _ => " ".repeat(character.len_utf8()),
        })
        .collect()
}

fn is_name(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// Names, `::`, and single other characters, each with its offset.
fn tokens(code: &str) -> Vec<(usize, &str)> {
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(first) = code[at..].chars().next() {
        let rest = &code[at..];
        let is_part = |c: char| c.is_alphanumeric() || c == '_';
        let length = if is_part(first) {
            rest.find(|c| !is_part(c)).unwrap_or(rest.len())
        } else if rest.starts_with("::") {
            2
        } else {
            first.len_utf8()
        };
        if !first.is_whitespace() {
            tokens.push((at, &rest[..length]));
        }
        at += length;
    }
    tokens
}

/// Expands the path or `use` tree that begins at `at`; returns where it ends.
fn expand(
    tokens: &[(usize, &str)],
    mut at: usize,
    prefix: &[String],
    found: &mut Vec<Vec<String>>,
) -> usize {
    let token = |at: usize| tokens.get(at).map_or("", |token| token.1);
    let mut path = prefix.to_vec();
    while is_name(token(at)) {
        path.push(token(at).to_owned());
        at += 1;
        if token(at) != "::" {
            break;
        }
        at += 1;
        if token(at) == "{" {
            at += 1;
            while !matches!(token(at), "}" | "") {
                at = expand(tokens, at, &path, found).max(at + 1);
                while !matches!(token(at), "," | "}" | "") {
                    at += 1; // `as name`
                }
                if token(at) == "," {
                    at += 1;
                }
            }
            return at + 1;
        }
    }
    found.push(path);
    at
}

/// Comments and the insides of string and character literals become spaces.
fn blank(raw: &str) -> String {
    let mut code = String::with_capacity(raw.len());
    let mut at = 0;
    while at < raw.len() {
        let rest = &raw[at..];
        let in_name = code.ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let hidden = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment(rest)
        } else if rest.starts_with('"') {
            quoted(rest, '"')
        } else if rest.starts_with('\'') {
            character(rest)
        } else if !in_name {
            raw_string(rest)
        } else {
            0
        };
        if hidden == 0 {
            let Some(character) = rest.chars().next() else {
                break;
            };
            code.push(character);
            at += character.len_utf8();
        } else {
            code.push_str(&spaces(&rest[..hidden]));
            at += hidden;
        }
    }
    code
}

fn block_comment(rest: &str) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at < rest.len() {
        if rest.as_bytes()[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if rest.as_bytes()[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    rest.len()
}

fn quoted(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (offset, character) in rest.char_indices().skip(1) {
        if escaped {
            escaped = false;
        } else if character == '\\' {
            escaped = true;
        } else if character == quote {
            return offset + 1;
        }
    }
    rest.len()
}

/// A character literal, or 0 for a lifetime.
fn character(rest: &str) -> usize {
    let mut characters = rest.chars().skip(1);
    match (characters.next(), characters.next()) {
        (Some('\\'), _) | (_, Some('\'')) => quoted(rest, '\''),
        _ => 0,
    }
}

/// `r"..."`, `br#"..."#` and the like, or 0.
fn raw_string(rest: &str) -> usize {
    let inside = rest.trim_start_matches(['b', 'c']);
    let Some(inside) = inside.strip_prefix('r') else {
        return 0;
    };
    let unhashed = inside.trim_start_matches('#');
    let hashes = inside.len() - unhashed.len();
    if !unhashed.starts_with('"') || rest.len() - inside.len() > 2 {
        return 0;
    }
    let end = format!("\"{}", "#".repeat(hashes));
    let begin = rest.len() - unhashed.len() + 1;
    rest[begin..]
        .find(&end)
        .map_or(rest.len(), |length| begin + length + end.len())
}

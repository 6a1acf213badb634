//! The users file: one of any content gives nobody more than a plain reading of it does.

use std::fs;

use serde_json::Value as Json;
use wallaby::http::users::Users;
use wallaby::node::{Authority as _, Credentials, Permission};

use crate::memory::{Bound, bounded};
use crate::{Reached, Sample, place};

/// An entry of two bytes takes 72, in a list that has grown by doubling, and a place in a map.
const BOUND: Bound = Bound {
    per_byte: 160,
    constant: 80 << 10,
};

/// See the module.
///
/// # Panics
/// If somebody may do what the file does not say.
pub fn users(data: &[u8]) -> Reached {
    let path = place::directory("users").join("users.json");
    fs::write(&path, data).expect("room for a file");
    let Ok(users) = bounded(BOUND, data.len(), || Users::open(&path)) else {
        return Reached::Refused;
    };
    // A plain reading minds what stands in fields that nobody asks for.
    let Ok(Json::Array(entries)) = serde_json::from_slice(data) else {
        return Reached::Refused;
    };
    let entries = entries.as_slice();
    let mut callers = vec![None];
    for entry in entries.iter().take(CALLERS_MAX) {
        let text = |field| entry[field].as_str().unwrap_or_default().to_owned();
        let (username, password) = (text("username"), text("password"));
        for password in [password.clone(), format!("{password}x"), String::new()] {
            callers.push(Some(Credentials {
                username: username.clone(),
                password,
            }));
        }
    }
    for caller in callers {
        for (permission, name) in Permission::ALL {
            let granted = users.permits_at_once(caller.as_ref(), &[permission]);
            if granted == Some(true) {
                assert!(may(entries, caller.as_ref(), name), "{caller:?}: {name}");
            } else if granted == Some(false) {
                assert!(!may(entries, caller.as_ref(), name), "{caller:?}: {name}");
            }
        }
    }
    Reached::Accepted
}

/// What the file says, read without thought for time.
fn may(entries: &[Json], caller: Option<&Credentials>, permission: &str) -> bool {
    let grants = |entry: &Json| {
        let permissions = entry["perms"].as_array().into_iter().flatten();
        permissions.filter_map(Json::as_str).any(|name| {
            name == permission
                || name == "all"
                || (name, permission) == ("join-read-replica", "join-read-only")
        })
    };
    let last = |name: &str| entries.iter().rfind(|entry| entry["username"] == *name);
    let is_open = last("*").is_some_and(grants);
    let own = caller
        .filter(|caller| caller.username != "*")
        .and_then(|caller| {
            let entry = last(&caller.username)?;
            let is_hashed = |password: &str| password.starts_with("$argon2");
            let password = entry["password"].as_str()?;
            (password == caller.password && !is_hashed(password)).then_some(entry)
        });
    is_open || own.is_some_and(grants)
}

/// Pieces that the reader knows.
pub(crate) const WORDS: [&str; 14] = [
    "{\"username\":\"",
    "\"password\":\"",
    "\"perms\":[\"",
    "\"]}",
    "\"},",
    "\"*\"",
    "all",
    "execute",
    "query",
    "join-read-replica",
    "join-read-only",
    "$argon2id$v=19$m=8,t=1,p=1$",
    ":",
    "\\u0000",
];

pub(crate) fn samples() -> Vec<Sample> {
    let hash = "$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$x7cO0xR8XH0l3pZ9mMzq4Q";
    let hashed = format!(r#"[{{"username":"a","password":"{hash}","perms":["all"]}}]"#);
    [
        (
            "plain",
            r#"[{"username":"bob","password":"secret","perms":["query","status"]},
              {"username":"*","perms":["ready"]}]"#,
        ),
        ("hashed", &hashed),
        (
            "twice",
            r#"[{"username":"a","password":"1","perms":["all"]},{"username":"a","password":"2"}]"#,
        ),
        (
            "replica",
            r#"[{"username":"r","password":"p","perms":["join-read-replica","nonsense"]}]"#,
        ),
        ("no-password", r#"[{"username":"a","perms":["all"]}]"#),
        ("no-name", r#"[{"password":"a"}]"#),
        ("nobody", "[]"),
        ("object", r#"{"username":"a"}"#),
        ("cut", r#"[{"username":"a","pass"#),
    ]
    .into_iter()
    .map(|(name, text)| Sample::new(name, text.as_bytes().to_vec()))
    .collect()
}

const CALLERS_MAX: usize = 6;

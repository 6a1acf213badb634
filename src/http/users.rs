//! The users file (`-auth`): who may do what, in rqlite's form.
//!
//! ```json
//! [
//!   {"username": "bob", "password": "$argon2id$v=19$...", "perms": ["query", "status"]},
//!   {"username": "*", "perms": ["ready"]}
//! ]
//! ```
//!
//! | Field | Meaning |
//! |---|---|
//! | `username` | the name; `*` is everybody, callers without credentials included |
//! | `password` | an argon2id hash (`wallaby hash-password`), or the password itself as in rqlite |
//! | `perms` | names of [`Permission`], `all`, or `join-read-replica` for `join-read-only` |
//!
//! Other fields are ignored. Of two entries with one name the later one counts.
//!
//! Passwords are compared by their HMAC under a key that this process draws at random: in constant
//! time, and without keeping them. The HMAC of a password that has passed its argon2id hash is
//! remembered, so that only the first request pays for it. A caller who fails pays for one hash if
//! the file has any, whether the user exists or not, so that time does not tell who is a user.

use std::collections::HashMap;
use std::fmt;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};

use ring::hmac;
use serde::Deserialize;
use serde_json::error::Category;

use crate::node::{Authority, Credentials, Permission, Watched};

use super::password::{Hash, PasswordError};

/// Why a users file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum UsersError {
    /// An entry that cannot be used; counted from 1.
    #[error("users file {file}, entry {entry} (user {username:?}): {why}")]
    Entry {
        /// The file.
        file: PathBuf,
        /// Which one.
        entry: usize,
        /// Its name.
        username: String,
        /// What is wrong.
        why: String,
    },
    /// It cannot be read.
    #[error("users file {file} cannot be read: {source}")]
    Io {
        /// The file.
        file: PathBuf,
        /// The reason.
        source: std::io::Error,
    },
    /// Not the JSON described above.
    #[error("users file {file} is damaged at line {line}, column {column}: {why}")]
    Json {
        /// The file.
        file: PathBuf,
        /// Counted from 1.
        line: usize,
        /// Counted from 1.
        column: usize,
        /// What is wrong, without repeating what stands there: it may be a password.
        why: &'static str,
    },
    /// No random numbers for the key under which passwords are compared.
    #[error("no random numbers")]
    Random,
    /// Longer than any real one.
    #[error("users file {file} has more than {what}")]
    TooLarge {
        /// The file.
        file: PathBuf,
        /// Which bound.
        what: &'static str,
    },
}

/// The users of a node.
pub struct Users {
    path: PathBuf,
    key: hmac::Key,
    table: RwLock<Arc<Table>>,
    watched: Mutex<Watched>,
}

/// One version of the file.
struct Table {
    users: HashMap<String, User>,
    everybody: Permissions,
    /// Checked in vain where no hash of the user's own is: the costliest in the file.
    decoy: Option<Hash>,
    /// Passwords in clear text.
    plain: usize,
}

struct User {
    secret: Secret,
    permissions: Permissions,
}

enum Secret {
    /// The HMAC of the password.
    Plain([u8; TAG_BYTES]),
    Hashed {
        hash: Hash,
        /// The HMAC of the password, once it was verified.
        verified: OnceLock<[u8; TAG_BYTES]>,
    },
}

/// A set of permissions, one bit each.
#[derive(Clone, Copy, Default)]
struct Permissions(u32);

/// One entry as it stands in the file.
#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: Option<String>,
    #[serde(default)]
    perms: Option<Vec<String>>,
}

impl Users {
    /// Reads a users file.
    ///
    /// # Errors
    /// [`UsersError`] names the file, and the line or the entry.
    pub fn open(path: &Path) -> Result<Arc<Self>, UsersError> {
        let random = ring::rand::SystemRandom::new();
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &random);
        let key = key.map_err(|_| UsersError::Random)?;
        let watched = Watched::new([path]);
        let table = Table::new(path, &read(path)?, &key)?;
        if table.plain > 0 {
            tracing::warn!(file = %path.display(), users = table.plain,
                "the users file has passwords in clear text; hash them with \
                 `wallaby hash-password`");
        }
        // Some ways of handing secrets to a container cannot do better, so it is not refused.
        let metadata = std::fs::metadata(path);
        if metadata.is_ok_and(|metadata| metadata.permissions().mode() & 0o077 != 0) {
            let file = path.display();
            tracing::warn!(%file, "others may read the users file; set its mode to 0600");
        }
        Ok(Arc::new(Self {
            path: path.to_owned(),
            key,
            table: RwLock::new(Arc::new(table)),
            watched: Mutex::new(watched),
        }))
    }

    /// Reads the file again if it has changed. One that cannot be used is logged, and changes
    /// nothing.
    pub(super) fn refresh(&self) {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        if !watched.have_changed() {
            return;
        }
        let entries = read(&self.path);
        let table = entries.and_then(|entries| Table::new(&self.path, &entries, &self.key));
        match table {
            Ok(table) => {
                tracing::info!(users = table.users.len(), "the users file was read again");
                let mut current = self.table.write().unwrap_or_else(PoisonError::into_inner);
                *current = Arc::new(table);
            }
            Err(error) => {
                tracing::error!(%error, "the users file was not read again; the old users stay");
            }
        }
    }

    fn table(&self) -> Arc<Table> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&table)
    }

    fn tag(&self, password: &str) -> [u8; TAG_BYTES] {
        tag(&self.key, password)
    }
}

impl Authority for Users {
    fn permits_at_once(
        &self,
        caller: Option<&Credentials>,
        permissions: &[Permission],
    ) -> Option<bool> {
        let table = self.table();
        let wanted = Permissions::of(permissions).without(table.everybody);
        if wanted.is_empty() {
            return Some(true);
        }
        let Some(caller) = caller else {
            return Some(false);
        };
        match table.users.get(&caller.username) {
            Some(user) if user.is_known_by(&self.key, &caller.password) => {
                Some(wanted.without(user.permissions).is_empty())
            }
            // Nobody's password takes time here.
            _ if table.decoy.is_none() => Some(false),
            _ => None,
        }
    }

    fn permits(&self, caller: Option<&Credentials>, permissions: &[Permission]) -> bool {
        if let Some(known) = self.permits_at_once(caller, permissions) {
            return known;
        }
        let (table, Some(caller)) = (self.table(), caller) else {
            return false;
        };
        let user = table.users.get(&caller.username);
        if let Some(user) = user
            && let Secret::Hashed { hash, verified } = &user.secret
        {
            if hash.verifies(&caller.password) {
                // Set already, by another request with the same password.
                let _ = verified.set(self.tag(&caller.password));
                let wanted = Permissions::of(permissions).without(table.everybody);
                return wanted.without(user.permissions).is_empty();
            }
        } else if let Some(decoy) = &table.decoy {
            // Only for the time it takes.
            let _ = decoy.verifies(&caller.password);
        }
        false
    }
}

/// Shows nothing that is secret.
impl fmt::Debug for Users {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Users")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl User {
    /// Whether this is the password, as far as that can be told without checking a hash.
    fn is_known_by(&self, key: &hmac::Key, password: &str) -> bool {
        let tag = match &self.secret {
            Secret::Plain(tag) => Some(tag),
            Secret::Hashed { verified, .. } => verified.get(),
        };
        tag.is_some_and(|tag| hmac::verify(key, password.as_bytes(), tag).is_ok())
    }
}

impl Table {
    fn new(file: &Path, entries: &[Entry], key: &hmac::Key) -> Result<Self, UsersError> {
        let mut table = Self {
            users: HashMap::new(),
            everybody: Permissions::default(),
            decoy: None,
            plain: 0,
        };
        for (position, entry) in (1..).zip(entries) {
            let failed = |why: String| UsersError::Entry {
                file: file.to_owned(),
                entry: position,
                username: entry.username.clone(),
                why,
            };
            let permissions = permissions(file, position, entry);
            if entry.username == EVERYBODY {
                table.everybody = permissions;
                continue;
            }
            if entry.username.is_empty() || entry.username.contains(':') {
                let why = "a user needs a name, without a colon";
                return Err(failed(why.to_owned()));
            }
            let password = entry.password.as_deref().unwrap_or_default();
            if password.is_empty() {
                return Err(failed(
                    "it has no password, so anybody could log in; give it one, or name it \"*\" \
                     to mean everybody"
                        .to_owned(),
                ));
            }
            let hash = Hash::parse(password).map_err(|error: PasswordError| {
                failed(format!("{error}; make one with `wallaby hash-password`"))
            })?;
            let secret = if let Some(hash) = hash {
                if table
                    .decoy
                    .as_ref()
                    .is_none_or(|decoy| decoy.cost < hash.cost)
                {
                    table.decoy = Some(hash.clone());
                }
                let verified = OnceLock::new();
                Secret::Hashed { hash, verified }
            } else {
                table.plain += 1;
                Secret::Plain(tag(key, password))
            };
            let user = User {
                secret,
                permissions,
            };
            if table.users.insert(entry.username.clone(), user).is_some() {
                let username = &entry.username;
                tracing::warn!(file = %file.display(), entry = position, username,
                    "a user stands twice in the users file; the later entry counts");
            }
        }
        Ok(table)
    }
}

impl Permissions {
    const ALL: Self = Self(u32::MAX);

    fn of(permissions: &[Permission]) -> Self {
        let bits = permissions.iter().map(|&permission| 1 << permission as u32);
        Self(bits.fold(0, |all, bit| all | bit))
    }

    fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// The password of a user, for `-join-as`. `None`: no such user.
///
/// # Errors
/// As for [`Users::open`]; also a password that is there only as its hash.
pub fn password_of(path: &Path, username: &str) -> Result<Option<String>, UsersError> {
    let entries = read(path)?;
    let found = (1..).zip(&entries).filter(|(_, e)| e.username == username);
    let Some((position, entry)) = found.last() else {
        return Ok(None);
    };
    let password = entry.password.clone().unwrap_or_default();
    if !matches!(Hash::parse(&password), Ok(None)) {
        return Err(UsersError::Entry {
            file: path.to_owned(),
            entry: position,
            username: username.to_owned(),
            why: "joining needs the password itself, and this is its hash; give the file that \
                  has it with -join-as-password-file"
                .to_owned(),
        });
    }
    Ok(Some(password))
}

/// The permissions of an entry. A name that nobody knows grants nothing, as in rqlite, but is
/// logged: it is likely a typing error.
fn permissions(file: &Path, position: usize, entry: &Entry) -> Permissions {
    let mut granted = Permissions::default();
    for name in entry.perms.iter().flatten() {
        let known = Permission::ALL.iter().find(|(_, known)| known == name);
        granted.0 |= match (known, name.as_str()) {
            (Some(&(permission, _)), _) => Permissions::of(&[permission]).0,
            (None, "all") => Permissions::ALL.0,
            (None, "join-read-replica") => Permissions::of(&[Permission::JoinReadOnly]).0,
            (None, _) => {
                tracing::warn!(file = %file.display(), entry = position, permission = name,
                    "the users file names an unknown permission, which grants nothing");
                0
            }
        };
    }
    granted
}

/// Reads and parses the file, within bounds.
fn read(path: &Path) -> Result<Vec<Entry>, UsersError> {
    let failed = |source| UsersError::Io {
        file: path.to_owned(),
        source,
    };
    let too_large = |what| UsersError::TooLarge {
        file: path.to_owned(),
        what,
    };
    let file = std::fs::File::open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    let mut bounded = file.take(FILE_BYTES_MAX + 1);
    bounded.read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(too_large("4 MiB"));
    }
    let parsed = serde_json::from_slice(&bytes);
    let entries: Vec<Entry> = parsed.map_err(|error: serde_json::Error| UsersError::Json {
        file: path.to_owned(),
        line: error.line(),
        column: error.column(),
        why: match error.classify() {
            Category::Eof => "it ends too early",
            Category::Syntax | Category::Io => "it is not JSON",
            Category::Data => {
                "it must be an array of objects with the texts `username` and `password`, and \
                 `perms`, an array of texts"
            }
        },
    })?;
    if entries.len() > USERS_MAX {
        return Err(too_large("10000 users"));
    }
    Ok(entries)
}

fn tag(key: &hmac::Key, password: &str) -> [u8; TAG_BYTES] {
    let tag = hmac::sign(key, password.as_bytes());
    let bytes = tag.as_ref().first_chunk::<TAG_BYTES>();
    *bytes.expect("HMAC-SHA256 has 32 bytes")
}

/// The user that every caller is.
const EVERYBODY: &str = "*";
const TAG_BYTES: usize = 32;
const FILE_BYTES_MAX: u64 = 4 << 20;
const USERS_MAX: usize = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    /// Of "secret"; cheap on purpose.
    fn cheap_hash() -> String {
        use argon2::password_hash::{PasswordHasher, SaltString};
        let params = argon2::Params::new(8, 1, 1, None).unwrap();
        let hasher = argon2::Argon2::new(Default::default(), Default::default(), params);
        let salt = SaltString::encode_b64(b"saltsalt").unwrap();
        let hash = hasher.hash_password(b"secret", &salt).unwrap();
        hash.to_string()
    }

    /// The users of this text.
    fn users(name: &str, text: &str) -> Arc<Users> {
        let name = format!("wallaby-users-{name}-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, text).unwrap();
        let users = Users::open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        users
    }

    fn at_once(users: &Users, username: &str, password: &str) -> Option<bool> {
        let caller = Credentials {
            username: username.to_owned(),
            password: password.to_owned(),
        };
        users.permits_at_once(Some(&caller), &[Permission::Query])
    }

    #[test]
    fn time_does_not_tell_a_known_user_from_an_unknown_one() {
        let hash = cheap_hash();
        let plain = r#"{"username":"bob","password":"plain","perms":["query"]}"#;
        let mixed = users(
            "mixed",
            &format!(r#"[{{"username":"ann","password":"{hash}","perms":["query"]}},{plain}]"#),
        );
        // With hashes in the file, all who fail have one checked.
        for (username, password) in [("ann", "wrong"), ("bob", "wrong"), ("unknown", "wrong")] {
            assert_eq!(at_once(&mixed, username, password), None, "{username}");
        }
        assert_eq!(at_once(&mixed, "bob", "plain"), Some(true));
        // Without any, nobody has.
        let plain = users("plain", &format!("[{plain}]"));
        for username in ["bob", "unknown"] {
            assert_eq!(at_once(&plain, username, "wrong"), Some(false));
        }
    }

    #[test]
    fn a_password_is_checked_once_and_then_remembered() {
        let hash = cheap_hash();
        let text = format!(r#"[{{"username":"ann","password":"{hash}","perms":["query"]}}]"#);
        let users = users("remembered", &text);
        let caller = |password: &str| Credentials {
            username: "ann".to_owned(),
            password: password.to_owned(),
        };
        assert_eq!(at_once(&users, "ann", "secret"), None);
        assert!(!users.permits(Some(&caller("Secret")), &[Permission::Query]));
        assert_eq!(at_once(&users, "ann", "secret"), None);
        assert!(users.permits(Some(&caller("secret")), &[Permission::Query]));
        assert_eq!(at_once(&users, "ann", "secret"), Some(true));
        assert_eq!(at_once(&users, "ann", "Secret"), None);
        assert_eq!(at_once(&users, "ann", &hash), None);
        let execute = [Permission::Query, Permission::Execute];
        assert_eq!(
            users.permits_at_once(Some(&caller("secret")), &execute),
            Some(false)
        );
    }
}

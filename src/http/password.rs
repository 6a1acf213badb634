//! Password hashes: argon2id in PHC text form, `$argon2id$v=19$m=...,t=...,p=...$salt$hash`.

use argon2::password_hash::{PasswordHash, PasswordHasher, PasswordVerifier, SaltString};
use argon2::{Algorithm, Argon2, Params};

/// How every hash of this family begins.
const FAMILY: &str = "$argon2";

/// Why a hash cannot be used or made.
#[derive(Debug, thiserror::Error)]
pub enum PasswordError {
    /// Not the text of a hash, or of a kind that is not supported.
    #[error("the password looks like a hash and is none that can be used: {0}")]
    Hash(String),
    /// There is nothing to hash.
    #[error("the password is empty")]
    Empty,
    /// The operating system gives no random numbers.
    #[error("no random numbers: {0}")]
    Random(String),
}

/// Hashes a password with a fresh salt and the parameters that OWASP recommends (19 MiB, two
/// passes).
///
/// # Errors
/// An empty password, or no random numbers.
pub fn hash(password: &str) -> Result<String, PasswordError> {
    if password.is_empty() {
        return Err(PasswordError::Empty);
    }
    let mut salt = [0; SALT_BYTES];
    getrandom::fill(&mut salt).map_err(|error| PasswordError::Random(error.to_string()))?;
    let salt = SaltString::encode_b64(&salt).expect("16 bytes are a salt of allowed length");
    let hash = Argon2::default().hash_password(password.as_bytes(), &salt);
    let hash = hash.map_err(|error| PasswordError::Hash(error.to_string()))?;
    Ok(hash.to_string())
}

/// A hash that was checked: of the right kind, and cheap enough to be computed on request.
#[derive(Clone)]
pub(super) struct Hash {
    text: String,
    /// Memory times passes: what one check costs.
    pub(super) cost: u64,
}

impl Hash {
    /// The hash that the password of a users file is, if it is one.
    pub(super) fn parse(password: &str) -> Result<Option<Self>, PasswordError> {
        if !password.starts_with(FAMILY) {
            return Ok(None);
        }
        let unusable = |why: &str| PasswordError::Hash(why.to_owned());
        let parsed = PasswordHash::new(password).map_err(|error| unusable(&error.to_string()))?;
        if parsed.algorithm.as_str() != Algorithm::Argon2id.as_str() {
            return Err(unusable("only argon2id is supported"));
        }
        if !matches!(parsed.version, None | Some(16 | 19)) {
            return Err(unusable("its version is neither 16 nor 19"));
        }
        if parsed.salt.is_none() || parsed.hash.is_none() {
            return Err(unusable("it has no salt, or ends before the hash"));
        }
        let params = Params::try_from(&parsed).map_err(|error| unusable(&error.to_string()))?;
        let (kib, passes, lanes) = (params.m_cost(), params.t_cost(), params.p_cost());
        if kib > MEMORY_KIB_MAX || passes > PASSES_MAX || lanes > LANES_MAX {
            return Err(unusable(
                "it asks for more than m=262144, t=16 or p=16, too much to check on request",
            ));
        }
        Ok(Some(Self {
            text: password.to_owned(),
            cost: u64::from(kib) * u64::from(passes),
        }))
    }

    /// Whether this is the hash of the password. Takes milliseconds and tens of MiB.
    pub(super) fn verifies(&self, password: &str) -> bool {
        let parsed = PasswordHash::new(&self.text).expect("it was parsed before");
        let verified = Argon2::default().verify_password(password.as_bytes(), &parsed);
        verified.is_ok()
    }
}

const SALT_BYTES: usize = 16;
const MEMORY_KIB_MAX: u32 = 256 << 10;
const PASSES_MAX: u32 = 16;
const LANES_MAX: u32 = 16;

#[cfg(test)]
mod tests {
    use super::*;

    /// Cheap on purpose: the text form is what is tested.
    const CHEAP: &str = "$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$";

    #[test]
    fn a_hash_made_here_verifies_its_password_only() {
        let text = hash("secret").unwrap();
        assert_ne!(text, hash("secret").unwrap(), "salts differ");
        let hash = Hash::parse(&text).unwrap().unwrap();
        assert!(hash.verifies("secret"));
        assert!(!hash.verifies("Secret"));
        assert!(!hash.verifies(""));
    }

    #[test]
    fn what_is_no_usable_hash_is_refused() {
        assert!(Hash::parse("secret").unwrap().is_none());
        assert!(Hash::parse("$2b$12$abcdef").unwrap().is_none());
        let digest = "x7cO0xR8XH0l3pZ9mMzq4Q";
        assert!(Hash::parse(&format!("{CHEAP}{digest}")).unwrap().is_some());
        for text in [
            "$argon2id$".to_owned(),
            CHEAP.to_owned(),
            CHEAP.trim_end_matches('$').to_owned(),
            format!("$argon2i$v=19$m=8,t=1,p=1$c2FsdHNhbHQ${digest}"),
            format!("$argon2d$v=19$m=8,t=1,p=1$c2FsdHNhbHQ${digest}"),
            format!("$argon2id$v=19$m=1048576,t=1,p=1$c2FsdHNhbHQ${digest}"),
            format!("$argon2id$v=19$m=8,t=17,p=1$c2FsdHNhbHQ${digest}"),
            format!("$argon2id$v=18$m=8,t=1,p=1$c2FsdHNhbHQ${digest}"),
        ] {
            assert!(Hash::parse(&text).is_err(), "{text}");
        }
        assert!(hash("").is_err());
    }
}

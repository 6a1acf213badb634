//! The credentials in a request: HTTP's basic scheme, as Go's library reads it.

use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::node::Credentials;

/// Who calls. `None`: nobody, or in a way that cannot be read, which is the same.
pub(super) fn credentials(headers: &HeaderMap) -> Option<Credentials> {
    let text = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, encoded) = text.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = String::from_utf8(STANDARD.decode(encoded).ok()?).ok()?;
    let (username, password) = decoded.split_once(':')?;
    Some(Credentials {
        username: username.to_owned(),
        password: password.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_basic_scheme_is_read() {
        let read = |text: &str| {
            let headers = HeaderMap::from_iter([(AUTHORIZATION, text.parse().unwrap())]);
            credentials(&headers).map(|found| (found.username, found.password))
        };
        let found =
            |username: &str, password: &str| Some((username.to_owned(), password.to_owned()));
        let encoded = |plain: &str| STANDARD.encode(plain);
        assert_eq!(read(&format!("Basic {}", encoded("a:b"))), found("a", "b"));
        assert_eq!(read(&format!("bAsIc {}", encoded("a:"))), found("a", ""));
        assert_eq!(
            read(&format!("Basic {}", encoded("a:b:c"))),
            found("a", "b:c")
        );
        assert_eq!(read(&format!("Basic {}", encoded("nobody"))), None);
        assert_eq!(read(&format!("Bearer {}", encoded("a:b"))), None);
        assert_eq!(read(&encoded("a:b")), None);
        assert_eq!(read("Basic ???"), None);
        assert_eq!(credentials(&HeaderMap::new()), None);
    }
}

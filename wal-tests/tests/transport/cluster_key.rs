//! The cluster key: its text, its file, and what does not show it.

use std::os::unix::fs::PermissionsExt;

use wallaby::transport::{ClusterKey, Security, TransportError};

#[test]
fn the_text_of_a_key_round_trips_and_every_change_of_a_character_is_refused() {
    let key = ClusterKey::generate().unwrap();
    assert!(key != ClusterKey::generate().unwrap());
    let text = key.to_text();
    assert!(text.starts_with("wallaby-key-1-"));
    assert_eq!(text.len(), 14 + 48);
    assert!(ClusterKey::parse(&format!(" {text}\n")).unwrap() == key);
    for position in 0..text.len() {
        for replacement in ['A', 'b', '7', '-', '_', '=', '!', '\u{e9}'] {
            let changed: String = text
                .chars()
                .enumerate()
                .map(|(at, old)| if at == position { replacement } else { old })
                .collect();
            if changed == text {
                continue;
            }
            let error = ClusterKey::parse(&changed).expect_err("one character differs");
            assert!(matches!(error, TransportError::Key { .. }), "{error}");
            assert!(
                !error.to_string().contains(&text[20..30]),
                "it shows the key"
            );
        }
    }
    for (wrong, says) in [
        ("", "does not begin"),
        ("wallaby-key-", "ends before"),
        ("wallaby-key-2-AAAA", "version"),
        ("wallaby-key-1-AAAA", "48 characters"),
        (&format!("{text}A"), "48 characters"),
    ] {
        let error = ClusterKey::parse(wrong).expect_err("no key").to_string();
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn a_key_of_known_bytes_has_a_known_text() {
    // 32 bytes 0x00, and the CRC-32 of `wallaby-key-1-` and them as another program computes it.
    let golden = "wallaby-key-1-AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAADgGeiQ";
    assert_eq!(ClusterKey::parse(golden).unwrap().to_text(), golden);
}

#[test]
fn debug_hides_the_key() {
    let key = ClusterKey::generate().unwrap();
    let text = key.to_text();
    let shown = format!("{key:?} {:?}", Security::Key(key.clone()));
    assert_eq!(shown, "ClusterKey(hidden) Key(ClusterKey(hidden))");
    assert!(!shown.contains(&text[14..20]));
}

#[test]
fn a_key_file_is_for_its_owner_only_and_is_never_overwritten() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("cluster.key");
    let key = ClusterKey::generate().unwrap();
    key.write_new(&path).unwrap();
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(ClusterKey::read(&path).unwrap() == key);
    let other = ClusterKey::generate().unwrap();
    let error = other.write_new(&path).unwrap_err();
    assert!(error.to_string().contains("cluster.key"), "{error}");
    assert!(ClusterKey::read(&path).unwrap() == key);
    std::fs::write(&path, "wallaby-key-1-oops").unwrap();
    let error = ClusterKey::read(&path).expect_err("no key").to_string();
    assert!(error.contains("cluster.key"), "{error}");
    assert!(error.contains("48 characters"), "{error}");
    std::fs::write(&path, vec![b'x'; 1 << 20]).unwrap();
    assert!(ClusterKey::read(&path).is_err());
    assert!(ClusterKey::read(&directory.path().join("none")).is_err());
}

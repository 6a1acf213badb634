//! Why TLS failed, in words that say what to change. The codes are TLS alerts (RFC 8446 section 6);
//! QUIC tells them to the other side, so both know the same.

/// What this side has against the other; `detail` is what the TLS library says.
pub(super) fn found_here(code: u64, detail: &str) -> String {
    match certificate(code) {
        // The library's words have the time in them, and would be another reason each time.
        Some(what) if alert(code) == CERTIFICATE_EXPIRED => {
            format!("the other node's certificate {what}")
        }
        Some(what) => format!("the other node's certificate {what} ({detail})"),
        None if alert(code) == CERTIFICATE_REQUIRED => {
            format!("the other node shows no certificate; {BOTH_SAME}")
        }
        None => format!("TLS failed: {detail}; {BOTH_SAME}"),
    }
}

/// What the other side has against this one.
pub(super) fn found_there(code: u64) -> String {
    match certificate(code) {
        Some(what) => format!("the other node refuses this node's certificate: it {what}"),
        None if alert(code) == CERTIFICATE_REQUIRED => {
            format!("the other node demands a certificate; {BOTH_SAME}")
        }
        None => format!(
            "the other node ended TLS with alert {}; {BOTH_SAME}",
            alert(code)
        ),
    }
}

/// Whether a QUIC error code carries a TLS alert (RFC 9001 section 4.8).
pub(super) const fn is_tls(code: u64) -> bool {
    code >= 0x100 && code < 0x200
}

const fn alert(code: u64) -> u64 {
    code & 0xff
}

/// What is wrong with a certificate, if that is what an alert is about.
fn certificate(code: u64) -> Option<&'static str> {
    Some(match alert(code) {
        // rustls sends this one for the name alone.
        BAD_CERTIFICATE => "is not for the name by which the node was dialed: wrong server name",
        UNSUPPORTED_CERTIFICATE => "is not meant for this use",
        CERTIFICATE_REVOKED => "was revoked",
        CERTIFICATE_EXPIRED => "has expired, or is not valid yet",
        UNKNOWN_CA | DECRYPT_ERROR => {
            "is of an authority that is not trusted: do both nodes have the same cluster key, or \
             certificates that the other's -node-ca-cert covers?"
        }
        ACCESS_DENIED => "has another common name than -node-verify-common-name demands",
        _ => return None,
    })
}

const BAD_CERTIFICATE: u64 = 42;
const UNSUPPORTED_CERTIFICATE: u64 = 43;
const CERTIFICATE_REVOKED: u64 = 44;
const CERTIFICATE_EXPIRED: u64 = 45;
const UNKNOWN_CA: u64 = 48;
const ACCESS_DENIED: u64 = 49;
const DECRYPT_ERROR: u64 = 51;
const CERTIFICATE_REQUIRED: u64 = 116;

const BOTH_SAME: &str = "do both nodes have the same cluster key, or certificates?";

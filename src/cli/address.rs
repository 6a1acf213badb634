//! Addresses as flags give them.

/// Checks the form `host:port`, with an IPv6 address in brackets.
pub(crate) fn host_and_port(addr: &str) -> Result<(), String> {
    if addr.contains("://") {
        return Err(format!(
            "{addr} should not include a protocol (http:// or https://)"
        ));
    }
    let (host, port) = addr
        .rsplit_once(':')
        .ok_or_else(|| format!("{addr} is not of the form host:port"))?;
    if !port.parse::<u16>().is_ok_and(|port| port != 0) {
        return Err(format!("{addr} has no port between 1 and 65535"));
    }
    let bracketed = host.starts_with('[') && host.ends_with(']');
    let odd = |c: char| c.is_whitespace() || c.is_control() || c == '/';
    if host.is_empty() || host.contains(odd) || (host.contains(':') && !bracketed) {
        return Err(format!("{addr} is not of the form host:port"));
    }
    Ok(())
}

/// Whether an address is written as a URL.
pub(crate) fn has_protocol(addr: &str) -> bool {
    addr.starts_with("http://") || addr.starts_with("https://")
}

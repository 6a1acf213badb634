//! Wallaby server.
fn main() {}

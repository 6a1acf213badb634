//! What CI and `cargo test-all` are made of. Apart from the other tools, and with one dependency: built
//! together with them, it would have the server and its libraries built twice, with two sets of features.

pub mod programs;

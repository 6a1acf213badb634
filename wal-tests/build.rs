//! Tells the tests where the headers of the SQLite that is compiled in are.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let include = std::env::var("DEP_SQLITE3_INCLUDE").expect("libsqlite3-sys says so");
    println!("cargo::rustc-env=SQLITE_INCLUDE={include}");
}

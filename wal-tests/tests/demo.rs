//! The demo, as a new user runs it.

use wal_tests::process;

#[test]
fn the_demo_reaches_its_proof() {
    let output = process::run(&["demo", "--once"]);
    let shown = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{}\n{shown}\n{errors}",
        output.status
    );
    assert!(shown.contains("bytes are equal on all 3 nodes"), "{shown}");
}

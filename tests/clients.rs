//! The real clients: npm `dotnetify` 5.4 and `@microsoft/signalr` 10 drive nodes and the app server of this build. The tests
//! themselves are `tests/clients/*.test.mjs`; this one runs them, and fails with what they printed.

mod common;

use common::Process;
use std::process::Command;
use std::time::Duration;

/// The whole suite takes under a minute on two cores.
const SUITE: Duration = Duration::from_secs(300);

#[test]
fn npm_clients_through_nodes_to_the_app_server() {
    let folder = common::npm_clients();
    let mut suite = Command::new("node");
    suite.args(["--test", "--test-concurrency=2", "--test-reporter=spec"]).current_dir(folder);
    suite.env("BINARY", env!("CARGO_BIN_EXE_signalring")).env_remove("NODE_OPTIONS").env_remove("TARGET");
    let mut suite = Process::spawn("node --test", &mut suite).expect("node was there a moment ago");
    let status = suite.wait(SUITE);
    let output = suite.output();
    match status {
        // The figures of the run, for whoever reads with --nocapture.
        Some(status) if status.success() => println!("{output}"),
        Some(status) => panic!("the client tests failed ({status}):\n{output}"),
        None => panic!("the client tests did not end in {SUITE:?}:\n{output}"),
    }
    assert!(!output.contains("tests 0\n"), "node --test found no test:\n{output}");
}

//! The real clients for JavaScript drive nodes and the app server of this build, beside openssl, HAProxy and nginx where these have a part.
//! The tests themselves are `tests/clients/*.test.mjs`; each test here runs some of them, and fails with what they printed.

mod common;

use common::Process;
use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

/// Each family takes less than half a minute on two cores.
const FAMILY: Duration = Duration::from_secs(300);

macro_rules! families {
    ($($name:ident: $($file:literal)+ $(, needs $($tool:literal)+)?;)*) => {
        $(
            #[test]
            fn $name() {
                run(&[$($file),+], &[$($($tool),+)?]);
            }
        )*
        const FILES: &[&str] = &[$($($file),+),*];
    };
}

families! {
    dotnetify_and_signalr: "dotnetify.test.mjs" "order.test.mjs" "recovery.test.mjs" "signalr.test.mjs";
    every_version_transport_and_protocol: "matrix.test.mjs";
    dotnetify_over_every_transport: "dotnetify-matrix.test.mjs";
    two_nodes_behind_haproxy: "balancer.test.mjs", needs "haproxy";
    deployed_behind_haproxy_and_nginx: "deploy.test.mjs", needs "haproxy" "nginx" "envsubst";
    tokens_of_users: "identity.test.mjs";
    listeners: "listeners.test.mjs";
    stateful_reconnect: "stateful.test.mjs";
    several_upstreams: "upstreams.test.mjs";
    tls: "tls.test.mjs", needs "haproxy" "openssl";
}

#[test]
fn every_file_is_run() {
    let folder = common::repository().join("tests/clients");
    let names = std::fs::read_dir(folder).expect("the folder is part of the repository");
    let names = names.map(|entry| entry.expect("it can be listed").file_name().to_string_lossy().into_owned());
    let found: BTreeSet<String> = names.filter(|name| name.ends_with(".test.mjs")).collect();
    assert_eq!(found, FILES.iter().map(ToString::to_string).collect());
}

fn run(files: &[&str], tools: &[&str]) {
    for tool in tools {
        common::needs(tool);
    }
    let mut suite = Command::new("node");
    suite
        .args(["--test", "--test-concurrency=2", "--test-reporter=spec"])
        .args(files)
        .current_dir(common::npm_clients());
    suite.env("BINARY", env!("CARGO_BIN_EXE_signalring")).env_remove("NODE_OPTIONS").env_remove("TARGET");
    let mut suite = Process::spawn("node --test", &mut suite).expect("node was there a moment ago");
    let status = suite.wait(FAMILY);
    let output = suite.output();
    match status {
        // The figures and tables of the run, for whoever reads with --nocapture.
        Some(status) if status.success() => println!("{output}"),
        Some(status) => panic!("the client tests failed ({status}):\n{output}"),
        None => panic!("the client tests did not end in {FAMILY:?}:\n{output}"),
    }
    assert!(!output.contains("tests 0\n"), "node --test found no test:\n{output}");
}

//! What only a real browser shows, in Chromium: the demo as a newcomer sees it (`tests/clients/browser.mjs`), and pages of another
//! origin (`tests/clients/cross-origin.mjs`).

mod common;

use common::Process;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const CHROMIUM: &str = "/usr/bin/chromium";

#[test]
#[ignore = "needs Chromium (Debian package chromium); run: cargo test --test browser -- --ignored"]
fn two_tabs_of_the_demo_page_on_two_nodes() {
    let screenshots = common::repository().join("target/screenshots");
    std::fs::create_dir_all(&screenshots).expect("target/ can be written");
    let output = drive("browser.mjs", &screenshots);
    assert!(screenshots.join("4-left.png").exists(), "the last screenshot is missing:\n{output}");
}

#[test]
#[ignore = "needs Chromium (Debian package chromium); run: cargo test --test browser -- --ignored"]
fn pages_of_another_origin() {
    drive("cross-origin.mjs", Path::new(""));
}

fn drive(script: &str, screenshots: &Path) -> String {
    assert!(
        Path::new(CHROMIUM).exists(),
        "the browser test needs Chromium at {CHROMIUM} (Debian: apt-get install chromium)"
    );
    let mut command = Command::new("node");
    command.args(["--test", "--test-reporter=spec", script]).env_remove("NODE_OPTIONS");
    command.current_dir(common::npm_clients());
    command.env("BINARY", env!("CARGO_BIN_EXE_signalring")).env("CHROMIUM", CHROMIUM).env("SCREENSHOTS", screenshots);
    let mut process = Process::spawn(script, &mut command).expect("node was there a moment ago");
    let status = process.wait(Duration::from_secs(120));
    let output = process.output();
    assert!(status.is_some_and(|status| status.success()), "the browser test failed ({status:?}):\n{output}");
    println!("{output}");
    output
}

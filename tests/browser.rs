//! The demo as a newcomer sees it: Chromium opens the page of `signalring demo`. What the pages do is `tests/clients/browser.mjs`.

mod common;

use common::Process;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const CHROMIUM: &str = "/usr/bin/chromium";

#[test]
#[ignore = "needs Chromium (Debian package chromium); run: cargo test --test browser -- --ignored"]
fn two_tabs_of_the_demo_page_on_two_nodes() {
    assert!(
        Path::new(CHROMIUM).exists(),
        "the browser test needs Chromium at {CHROMIUM} (Debian: apt-get install chromium)"
    );
    let folder = common::npm_clients();
    let screenshots = common::repository().join("target/screenshots");
    std::fs::create_dir_all(&screenshots).expect("target/ can be written");

    let mut script = Command::new("node");
    script.args(["--test", "--test-reporter=spec", "browser.mjs"]).current_dir(folder).env_remove("NODE_OPTIONS");
    script.env("BINARY", env!("CARGO_BIN_EXE_signalring")).env("CHROMIUM", CHROMIUM).env("SCREENSHOTS", &screenshots);
    let mut script = Process::spawn("node browser.mjs", &mut script).expect("node was there a moment ago");
    let status = script.wait(Duration::from_secs(120));
    let output = script.output();
    assert!(status.is_some_and(|status| status.success()), "the browser test failed ({status:?}):\n{output}");
    assert!(screenshots.join("4-left.png").exists(), "the last screenshot is missing:\n{output}");
    println!("{output}");
}

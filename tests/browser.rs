//! What only a real browser shows, in Chromium: the demo as a newcomer sees it (`tests/clients/browser.mjs`), and pages of another
//! origin (`tests/clients/cross-origin.mjs`).

mod common;

use common::drive_browser;

#[test]
#[ignore = "needs Chromium (Debian package chromium); run: cargo test --test browser -- --ignored"]
fn two_tabs_of_the_demo_page_on_two_nodes() {
    let (output, screenshots) = drive_browser("browser.mjs", &[]);
    assert!(screenshots.join("4-left.png").exists(), "the last screenshot is missing:\n{output}");
}

#[test]
#[ignore = "needs Chromium (Debian package chromium); run: cargo test --test browser -- --ignored"]
fn pages_of_another_origin() {
    drive_browser("cross-origin.mjs", &[]);
}

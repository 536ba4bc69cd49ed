//! What only a real browser shows, in Chromium: the demonstration as a newcomer sees it (`tests/clients/demo.mjs`), its live page
//! (`tests/clients/browser.mjs`), and pages of another origin (`tests/clients/cross-origin.mjs`).

mod common;

use common::drive_browser;

#[test]
#[ignore = "needs Chromium (Debian package chromium); run: cargo test --test browser -- --ignored"]
fn the_demonstration_is_seen_stopped_and_started_again() {
    let (output, screenshots) = drive_browser("demo.mjs", &[]);
    for name in ["light", "dark", "phone", "tablet", "node-stopped", "app-server-stopped"] {
        assert!(screenshots.join(format!("demo-{name}.png")).exists(), "{name} is missing:\n{output}");
    }
}

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

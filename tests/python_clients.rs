//! SignalR clients of others, in Python: `pysignalr` and `signalrcore` from PyPI, as `python/requirements.txt` pins them. What they do
//! is `python/rows.py`; this starts what they connect to, and installs them under `target/`.

mod common;

use common::{App, Node, Process};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

#[test]
fn pysignalr() {
    rows_of("pysignalr", 2);
}

#[test]
fn signalrcore() {
    rows_of("signalrcore", 6);
}

fn rows_of(client: &str, rows: usize) {
    let packages = packages();
    let app = App::start();
    // signalrcore notices its own stop at the next ping.
    let nodes = [(); 2].map(|()| Node::start(&app, &["--shards", "2", "--keep-alive-interval", "500ms"]));
    let [near, far] = nodes.each_ref().map(|node| format!("http://{}", node.address));

    let mut script = Command::new(python());
    script.arg(common::repository().join("tests/python/rows.py")).args([client, &near, &far, &app.url()]);
    script.env("PYTHONPATH", packages).env("PYTHONDONTWRITEBYTECODE", "1");
    let mut script = Process::spawn("rows.py", &mut script).expect("Python was there a moment ago");
    let status = script.wait(Duration::from_secs(180));
    let output = script.output();
    assert!(status.is_some_and(|status| status.success()), "{client} failed ({status:?}):\n{output}");
    let passed = output.lines().filter(|line| line.starts_with('|')).count();
    assert_eq!(passed, rows, "every row of {client} prints a line:\n{output}");
    println!("{output}");
}

fn python() -> PathBuf {
    std::env::var_os("PYTHON").unwrap_or("python3".into()).into()
}

/// The folder of the packages, installed by pip as the requirements say.
fn packages() -> PathBuf {
    static INSTALLED: std::sync::OnceLock<PathBuf> = std::sync::OnceLock::new();
    INSTALLED.get_or_init(install).clone()
}

fn install() -> PathBuf {
    let requirements = common::repository().join("tests/python/requirements.txt");
    let wanted = std::fs::read_to_string(&requirements).expect("the requirements are part of the repository");
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("python-clients");
    let stamp = folder.join("requirements.txt");
    if std::fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
        return folder;
    }
    let _ = std::fs::remove_dir_all(&folder);
    let mut pip = Command::new(python());
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--target"]).arg(&folder);
    pip.arg("--requirement").arg(&requirements);
    let mut pip = Process::spawn("pip install", &mut pip).unwrap_or_else(|error| {
        panic!("the Python clients need Python 3 with pip ({error}): install it or name it in PYTHON")
    });
    let status = pip.wait(Duration::from_secs(300));
    assert!(status.is_some_and(|status| status.success()), "pip install failed ({status:?}):\n{}", pip.output());
    std::fs::write(&stamp, wanted).expect("target/ can be written");
    folder
}

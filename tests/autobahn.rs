//! The Autobahn WebSocket cases against the node's own codec, served by `signalring::ws_echo`.
//!
//! The cases are the Python sources of `autobahntestsuite`, fetched from PyPI by name into `target/`;
//! `autobahn/abts_py3.py` (ours) drives them on Python 3. Sections 12 and 13 are permessage-deflate, which is not offered.
use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

const PACKAGE: &str = "autobahntestsuite";
const VERSION: &str = "25.10.1";
const SECTIONS: &str = "1.,2.,3.,4.,5.,6.,7.,9.,10.";
const CASES: usize = 301;
/// The suite's own idea of a pass.
const PASSED: [&str; 3] = ["OK", "NON-STRICT", "INFORMATIONAL"];

#[test]
#[ignore = "needs Python 3 and the Autobahn case sources: cargo test --test autobahn -- --ignored"]
fn autobahn() {
    let work = Path::new(env!("CARGO_TARGET_TMPDIR")).join("autobahn");
    std::fs::create_dir_all(&work).expect("a directory for the case sources");
    let python = python();
    let cases = case_sources(&python, &work);

    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("ws://{}/", listener.local_addr().expect("the port"));
    std::thread::spawn(move || signalring::ws_echo::serve(listener));

    let verdicts_file = work.join("verdicts.json");
    let _ = std::fs::remove_file(&verdicts_file);
    let harness = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/autobahn/abts_py3.py");
    run(Command::new(&python)
        .arg(harness)
        .arg(cases)
        .arg(url)
        .args(["--cases", SECTIONS, "--json"])
        .arg(&verdicts_file));

    let text = std::fs::read_to_string(&verdicts_file).expect("the harness writes its verdicts");
    let verdicts: BTreeMap<String, serde_json::Value> = serde_json::from_str(&text).expect("verdicts are JSON");
    let mut counts: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    let mut failed = Vec::new();
    for (case, verdict) in &verdicts {
        for aspect in ["behavior", "behaviorClose"] {
            let behavior = verdict[aspect].as_str().unwrap_or("no verdict");
            *counts.entry((aspect, behavior)).or_default() += 1;
            if !PASSED.contains(&behavior) {
                failed.push(format!("{case} {aspect}: {behavior} ({})", verdict["result"]));
            }
        }
    }
    println!("{} cases: {counts:?}", verdicts.len());
    assert!(failed.is_empty(), "{} of the verdicts are no pass:\n{}", failed.len(), failed.join("\n"));
    assert_eq!(verdicts.len(), CASES, "the sections {SECTIONS} have {CASES} cases");
}

fn python() -> PathBuf {
    let python = PathBuf::from(std::env::var_os("PYTHON").unwrap_or("python3".into()));
    let found = Command::new(&python).arg("--version").output().is_ok_and(|output| output.status.success());
    assert!(
        found,
        "The Autobahn cases need Python 3, and `{}` cannot be run: install it or name it in PYTHON.",
        python.display()
    );
    python
}

/// The directory of the cases: `AUTOBAHN_SOURCES` (an unpacked sdist), or what an earlier run fetched, or fetched now.
fn case_sources(python: &Path, work: &Path) -> PathBuf {
    let sdist =
        std::env::var_os("AUTOBAHN_SOURCES").map_or_else(|| work.join(format!("{PACKAGE}-{VERSION}")), PathBuf::from);
    let cases = sdist.join(PACKAGE);
    if !cases.join("case").is_dir() {
        let fetched = Command::new(python)
            .args(["-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", "--dest"])
            .arg(work)
            .arg(format!("{PACKAGE}=={VERSION}"))
            .output();
        // pip builds the package's metadata once it has the archive; only the archive matters here.
        let archive = work.join(format!("{PACKAGE}-{VERSION}.tar.gz"));
        assert!(
            archive.is_file(),
            "The Autobahn case sources are missing and pip could not fetch {PACKAGE} {VERSION} from its index: \
             unpack the sdist elsewhere and name its directory in AUTOBAHN_SOURCES. pip said: {}",
            fetched
                .map_or_else(|error| error.to_string(), |output| String::from_utf8_lossy(&output.stderr).into_owned())
        );
        run(Command::new(python).args(["-m", "tarfile", "-e"]).arg(archive).arg(work));
    }
    assert!(cases.join("case").is_dir(), "There are no Autobahn cases in {}.", cases.display());
    cases
}

fn run(command: &mut Command) {
    let status = command.status();
    assert!(status.as_ref().is_ok_and(|status| status.success()), "{command:?}: {status:?}");
}

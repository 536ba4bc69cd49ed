//! Configuration, from outside: the binary with files, variables and flags.
use signalring::config::settings::{SETTINGS, markdown};
use signalring::config::{Config, Machine, RunFlags};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A file that is gone after the test.
struct File(PathBuf);

impl File {
    fn new(name: &str, text: &str) -> File {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}-{name}.toml", std::process::id()));
        std::fs::write(&path, text).unwrap();
        File(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn signalring(arguments: &[&str], env: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_signalring"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("SIGNALRING_")) {
        command.env_remove(name);
    }
    command.args(arguments).envs(env.iter().copied()).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

const APP: [&str; 2] = ["--app-server", "http://127.0.0.1:6100"];

#[test]
fn all_faults_come_at_once_with_their_places_and_exit_code_2() {
    let file = File::new(
        "faulty",
        "lissten = \"127.0.0.1:5000\"\n\
         shards = \"two\"\n\
         allowed_origins = [\"https://a.example/\", \"*\"]\n\
         \n\
         [hub]\n\
         keep_alive_interval = \"40s\"\n\
         handshake_timeout = \"15 fortnights\"\n\
         \n\
         [limits]\n\
         client_send_queue_bytes = \"1KiB\"\n\
         \n\
         [[upstream]]\n\
         url = \"https://app\"\n\
         use_message_pack = true\n\
         halt_pipeline = false\n\
         filter = \"HelloWorldVM\"\n\
         \n\
         [[upstream]]\n\
         url = \"http://second\"\n",
    );
    for command in ["run", "check"] {
        let output = signalring(
            &[command, "--config", file.path(), "--pool-size", "0"],
            &[("SIGNALRING_ADMN", "127.0.0.1:9090"), ("SIGNALRING_LOG", "loud")],
        );
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(output.stdout.is_empty());
        for (place, key, part) in [
            (":1", "lissten", "did you mean listen?"),
            (":2", "shards", "expected an integer"),
            (":3", "allowed_origins", "write https://a.example"),
            (":3", "allowed_origins", "wildcards"),
            (":6", "hub.keep_alive_interval", "raise client_timeout_interval to 80s or more"),
            (":7", "hub.handshake_timeout", "not a duration"),
            (":10", "limits.client_send_queue_bytes", "16KiB to 64MiB"),
            (":13", "upstream.url", "TLS towards app servers is not supported yet"),
            (":14", "upstream.use_message_pack", "not yet supported"),
            (":15", "upstream.halt_pipeline", "not yet supported"),
            (":16", "upstream.filter", "not yet supported"),
            (":18", "upstream", "routing between several upstreams is not supported yet"),
        ] {
            let start = format!("  {}{place}: {key}: ", file.path());
            assert!(said.lines().any(|line| line.starts_with(&start) && line.contains(part)), "{start} {part}\n{said}");
        }
        assert!(said.contains("  SIGNALRING_ADMN: unknown variable; did you mean SIGNALRING_ADMIN?"), "{said}");
        assert!(said.contains("  SIGNALRING_LOG: log: \"loud\" is not a log level"), "{said}");
        assert!(
            said.contains("  --pool-size: upstream.connection_pool_size: 0 is out of range; it takes 1 to 1024"),
            "{said}"
        );
        assert!(said.contains("has 15 faults"), "{said}");
    }
}

#[test]
fn what_is_not_toml_says_the_line() {
    let file = File::new("syntax", "listen = \"127.0.0.1:5000\"\nshards = [1,\n[hub\n");
    let output = signalring(&["check", "--config", file.path()], &[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr(&output).contains(&format!("{}:", file.path())) && stderr(&output).contains("not TOML"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn an_unreadable_file_hides_no_other_fault() {
    let output = signalring(&["run", "--config", "/nonexistent/node.toml", "--shards", "many"], &[]);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        said.contains("/nonexistent/node.toml: cannot be read")
            && said.contains("--shards: shards: \"many\" is not a whole number"),
        "{said}"
    );
    assert!(!said.contains("no app server"), "the file may name it: {said}");
}

#[test]
fn wrong_arguments_exit_2_too() {
    for arguments in [&["run", "--no-such-flag"][..], &["no-such-command"], &["app", "--listen", "nowhere"], &[]] {
        assert_eq!(signalring(arguments, &[]).status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn no_port_is_opened_before_the_configuration_is_valid() {
    // The port is taken: if run tried to open it, it would say so and exit 1.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = taken.local_addr().unwrap().to_string();
    let output = signalring(&["run", "--listen", &listen], &[]);
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(!stderr(&output).contains("in use"));
}

#[test]
fn flags_go_before_variables_before_the_file_and_check_says_which() {
    let file = File::new(
        "precedence",
        "shards = 1\nhub_path = \"/file\"\nlog = \"warn\"\n[[upstream]]\nurl = \"http://file:1\"\n",
    );
    let output = signalring(
        &["check", "--shards", "3"],
        &[("SIGNALRING_CONFIG", file.path()), ("SIGNALRING_SHARDS", "2"), ("SIGNALRING_HUB_PATH", "/env")],
    );
    let shown = stdout(&output);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let line =
        |start: &str| shown.lines().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("{start}\n{shown}"));
    assert!(line("shards = 3 ").ends_with("# --shards"), "{shown}");
    assert!(line("hub_path = \"/env\" ").ends_with("# SIGNALRING_HUB_PATH"), "{shown}");
    assert!(line("log = \"warn\" ").ends_with(&format!("# {}:3", file.path())), "{shown}");
    assert!(line("url = \"http://file:1\" ").ends_with(":5"), "{shown}");
    assert!(line("admin = ").ends_with("# default"), "{shown}");
    assert!(shown.contains("# Memory budget") && shown.contains("client slots"), "{shown}");
}

#[test]
fn what_check_prints_reads_back_to_the_same_configuration() {
    let flags = [
        "--allow-origin",
        "https://a.example",
        "--forward-headers",
        "Cookie,User-Agent",
        "--handshake-timeout",
        "1500ms",
        "--max-clients",
        "500",
    ];
    let mut arguments = vec!["check"];
    arguments.extend(APP);
    arguments.extend(flags);
    let first = stdout(&signalring(&arguments, &[("SIGNALRING_LOG", "info,signalring=debug")]));
    let file = File::new("round-trip", &first);
    let second = signalring(&["check", "--config", file.path()], &[]);
    assert_eq!(second.status.code(), Some(0), "{}", stderr(&second));
    let config = |text: &str| {
        let machine = Machine { cores: 1, nofile: 1 << 20 };
        Config::resolve(Some(("shown", text)), std::iter::empty(), &RunFlags::default(), &machine).unwrap()
    };
    assert_eq!(config(&first), config(&stdout(&second)));
    assert_eq!(config(&first).limits.max_clients, 500);
    assert_eq!(config(&first).log, "info,signalring=debug");
}

#[test]
fn the_help_documents_every_setting() {
    for command in ["run", "check"] {
        let output = signalring(&[command, "--help"], &[]);
        assert_eq!(output.status.code(), Some(0));
        let help = stdout(&output).split_whitespace().collect::<Vec<_>>().join(" ");
        for setting in SETTINGS {
            for part in [
                format!("--{} <", setting.flag),
                format!("[env: {}]", setting.env),
                format!("[default: {}]", setting.default),
            ] {
                assert!(help.contains(&part), "{command} --help lacks {part}\n{help}");
            }
        }
        assert!(help.contains("Examples:") && help.contains("--config <FILE>"));
    }
    let help = stdout(&signalring(&["--help"], &[]));
    for part in ["run", "app", "demo", "check", "Examples:", "Exit codes"] {
        assert!(help.contains(part), "{help}");
    }
    assert!(!help.contains("ws-echo"), "it is for conformance suites only: {help}");
}

#[test]
fn every_setting_can_be_said_in_every_source() {
    let machine = Machine { cores: 2, nofile: 1 << 20 };
    for setting in SETTINGS {
        // No setting takes it; the fault shows that it was recognised as this setting's.
        let env = [(setting.env.to_string(), "\u{1}".to_string())];
        let faults = Config::resolve(None, env.into_iter(), &RunFlags::default(), &machine).unwrap_err().to_string();
        assert!(faults.contains(&format!("{}: {}: ", setting.env, setting.path())), "{faults}");
        let faults =
            Config::resolve(None, std::iter::empty(), &RunFlags::default().with(setting.key, "\u{1}"), &machine)
                .unwrap_err()
                .to_string();
        assert!(faults.contains(&format!("--{}: {}: ", setting.flag, setting.path())), "{faults}");
        let header = match setting.table.name() {
            "" => String::new(),
            "upstream" => "[[upstream]]".into(),
            table => format!("[{table}]"),
        };
        let text = format!("{header}\n{} = 1979-05-27\n", setting.name);
        let faults = Config::resolve(Some(("f", &text)), std::iter::empty(), &RunFlags::default(), &machine)
            .unwrap_err()
            .to_string();
        assert!(faults.contains(&format!("f:2: {}: ", setting.path())), "{faults}");
    }
}

const BEGIN: &str = "<!-- settings: written by the table in src/config/settings.rs -->\n";
const END: &str = "<!-- /settings -->";

#[test]
fn the_readme_has_the_table_of_settings() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = std::fs::read_to_string(root.join("README.md")).unwrap();
    let table = readme.split_once(BEGIN).and_then(|(_, rest)| rest.split_once(END)).map(|(table, _)| table.trim());
    if table != Some(markdown().trim()) {
        let written = Path::new(env!("CARGO_TARGET_TMPDIR")).join("settings.md");
        std::fs::write(&written, format!("{BEGIN}{}{END}\n", markdown())).unwrap();
        panic!("README.md does not show the settings as they are; replace that section by {}", written.display());
    }
}

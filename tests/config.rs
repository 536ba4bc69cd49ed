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
    signalring_in(Path::new("."), arguments, env)
}

fn signalring_in(folder: &Path, arguments: &[&str], env: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_signalring"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("SIGNALRING_")) {
        command.env_remove(name);
    }
    command.current_dir(folder).args(arguments).envs(env.iter().copied()).output().unwrap()
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
         url = \"ftp://app\"\n\
         use_message_pack = \"yes\"\n\
         halt_pipeline = 1\n\
         dispatch = \"lane\"\n\
         \n\
         [[upstream]]\n\
         name = \"upstream-1\"\n",
    );
    for command in ["run", "check"] {
        let output = signalring(
            &[command, "--config", file.path(), "--max-clients", "0"],
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
            (":13", "upstream.url", "ftp:// is not a scheme of app servers"),
            (":14", "upstream.use_message_pack", "true or false, without quotes"),
            (":15", "upstream.halt_pipeline", "expected true or false"),
            (":16", "upstream.dispatch", "none of client, message"),
            (":19", "upstream.name", "upstreams 1 and 2 are both called"),
        ] {
            let start = format!("  {}{place}: {key}: ", file.path());
            assert!(said.lines().any(|line| line.starts_with(&start) && line.contains(part)), "{start} {part}\n{said}");
        }
        assert!(said.contains("  SIGNALRING_ADMN: unknown variable; did you mean SIGNALRING_ADMIN?"), "{said}");
        assert!(said.contains("  SIGNALRING_LOG: log: \"loud\" is not a log level"), "{said}");
        assert!(said.contains("  --max-clients: limits.max_clients: 0 is out of range; it takes 1 to "), "{said}");
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

/// A folder that is gone after the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str, files: &[(&str, &str)]) -> Folder {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}-{name}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        for (name, text) in files {
            std::fs::write(folder.join(name), text).unwrap();
        }
        Folder(folder)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_string()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

const EVERYTHING: &str = r#"
listen = ["http://127.0.0.1:5000", "https://[::]:5443", "unix:/run/signalring/node.sock"]
admin = "127.0.0.1:9090"
peers = ["10.0.0.2:9090"]
shards = 2
node_name = "node-1"
token_key_file = "token.key"
trusted_proxies = ["10.0.0.0/8", "::1", "unix"]
forwarded_header = "Forwarded"
proxy_protocol = true
hub_path = "/dotnetify"
allowed_origins = ["https://app.example.com"]
log = "info"
log_format = "json"
drain_delay = "3s"
drain_window = "30s"
take_over = "/run/signalring/take-over.sock"

[hub]
maximum_receive_message_size = "64KiB"
handshake_timeout = "15s"
client_timeout_interval = "30s"
keep_alive_interval = "15s"
transports = ["WebSockets", "LongPolling"]
allow_stateful_reconnects = false
stateful_reconnect_buffer_size = 200000
poll_timeout = "50s"
disconnect_timeout = "20s"
close_on_authentication_expiration = true
negotiate_when_unavailable = true

[limits]
max_clients = 500
client_send_queue_bytes = "256KiB"
client_send_buffer_bytes = "32KiB"
request_head_timeout = "5s"
client_send_queue_time = "30s"
client_message_rate = 1000
client_message_burst = 2000
client_tcp_timeout = "1m"
connections_per_address = 0
accept_rate = 2000
upstream_queue_bytes = "4MiB"
upstream_queue_timeout = "10s"

[tls]
certificate_file = "tls/../node.pem"
key_file = "node.key"
minimum_version = "1.3"

[identity]
signing_key_file = "users.key"
public_key_file = ["a.pem", "b.pem"]
jwks_file = "jwks.json"
audience = ["signalring"]
issuer = "https://issuer.example.com/"
clock_skew = "0s"
user_id_claim = "sub"
forward_claims = ["role", "email"]
required = "connection"

[[upstream]]
name = "chat"
kind = "app-server"
urls = ["https://app.example.com:6100", { url = "https://app-2.example.com:6100", weight = 2 }]
connection_pool_size = 8
use_message_pack = true
maximum_receive_message_size = "1MiB"
ca_file = "ca.pem"
client_certificate_file = "client.pem"
client_key_file = "client.key"
filter = 'vm_id.startsWith("Chat") && call_type != "Update_VM"'
halt_pipeline = true
dispatch = "client"
hub_id = "lane"
forward_headers = ["Cookie"]

[[upstream]]
kind = "observer"
url = "http://observer.example.com"

[[upstream]]
url = "http://app.example.com"
maximum_receive_message_size = "64KiB"
"#;

const TOKEN_KEY: &str = "swordfish-swordfish";
const SIGNING_KEY: &str = "swordfish-swordfish-swordfish-swordfish";

fn everything(name: &str) -> Folder {
    let folder = Folder::new(
        name,
        &[
            ("node.toml", EVERYTHING),
            ("token.key", &format!("{TOKEN_KEY}\n")),
            ("users.key", &format!("{SIGNING_KEY}\r\n")),
            ("node.pem", ""),
            ("node.key", ""),
            ("a.pem", ""),
            ("b.pem", ""),
            ("jwks.json", ""),
            ("ca.pem", ""),
            ("client.pem", ""),
            ("client.key", ""),
        ],
    );
    std::fs::create_dir_all(folder.path("tls")).unwrap();
    folder
}

#[test]
fn a_file_with_everything_is_taken_and_shown_and_reads_back() {
    let folder = everything("everything");
    let output = signalring(&["check", "--config", &folder.path("node.toml")], &[]);
    let shown = stdout(&output);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    for line in EVERYTHING.lines().filter(|line| line.contains(" = ")) {
        let name = line.split(' ').next().unwrap();
        assert!(shown.lines().any(|shown| shown.starts_with(&format!("{name} = "))), "{name}\n{shown}");
    }
    // Relative paths begin at the file's folder, wherever the command is run.
    assert!(shown.contains(&format!("token_key_file = \"{}\"", folder.path("token.key"))), "{shown}");
    assert!(shown.contains("# token_key is not set") && shown.contains("# signing_key is not set"), "{shown}");
    assert!(!shown.contains("swordfish"), "{shown}");

    let machine = Machine { cores: 1, nofile: 1 << 20 };
    let config = |path: &str, text: &str| {
        Config::resolve(Some((path, text)), std::iter::empty(), &RunFlags::default(), &machine).unwrap()
    };
    let original = config(&folder.path("node.toml"), EVERYTHING);
    assert_eq!(config("elsewhere.toml", &shown), original);
    assert_eq!(original.token_key.as_ref().unwrap().bytes(), TOKEN_KEY.as_bytes());
    assert_eq!(original.identity.as_ref().unwrap().signing_key.as_ref().unwrap().bytes(), SIGNING_KEY.as_bytes());
    assert!(!format!("{original:?}").contains("swordfish"));
}

#[test]
fn files_that_cannot_be_read_are_faults_of_their_settings() {
    let folder = everything("unreadable");
    for gone in ["node.pem", "client.key", "token.key"] {
        std::fs::remove_file(folder.path(gone)).unwrap();
    }
    std::fs::remove_file(folder.path("jwks.json")).unwrap();
    std::fs::create_dir(folder.path("jwks.json")).unwrap();
    std::fs::write(folder.path("users.key"), "-----BEGIN PUBLIC KEY-----\nswordfish\n").unwrap();
    let output = signalring(&["check", "--config", &folder.path("node.toml")], &[]);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    for (key, part) in [
        ("token_key_file", "token.key\" cannot be read: No such file"),
        ("tls.certificate_file", "cannot be read: No such file"),
        ("identity.jwks_file", "jwks.json\" is not a file"),
        ("identity.signing_key_file", "it is a PEM key or certificate, not a shared secret"),
        ("upstream.client_key_file", "client.key\" cannot be read: No such file"),
    ] {
        assert!(said.lines().any(|line| line.contains(&format!(": {key}: ")) && line.contains(part)), "{key}\n{said}");
    }
    // A second file that is gone is no contradiction as well.
    assert!(said.contains("has 5 faults") && !said.contains("swordfish"), "{said}");
}

#[test]
fn paths_in_flags_and_variables_begin_at_the_working_directory() {
    let folder = everything("working-directory");
    let arguments = ["check", APP[0], APP[1], "--token-key-file", "token.key"];
    let output = signalring_in(&folder.0, &arguments, &[("SIGNALRING_IDENTITY_JWKS_FILE", "jwks.json")]);
    let shown = stdout(&output);
    assert!(shown.contains(&format!("token_key_file = \"{}\"", folder.path("token.key"))), "{}", stderr(&output));
    assert!(shown.contains(&format!("jwks_file = \"{}\"", folder.path("jwks.json"))), "{shown}");
}

#[test]
fn a_fault_in_a_filter_points_into_the_expression() {
    let file = File::new(
        "filter",
        "[[upstream]]\nurl = \"http://a\"\nfilter = 'vm_id == \"A\"'\n\n\
         [[upstream]]\nurl = \"http://b\"\nfilter = 'vm_id == '\n",
    );
    let said = stderr(&signalring(&["check", "--config", file.path()], &[]));
    let lines: Vec<&str> = said.lines().collect();
    let at =
        lines.iter().position(|line| line.starts_with(&format!("  {}:7: upstream.filter: at column ", file.path())));
    let at = at.unwrap_or_else(|| panic!("{said}"));
    assert_eq!(lines[at + 1], "      vm_id ==", "{said}");
    assert_eq!(lines[at + 2].trim(), "^", "{said}");
    assert_eq!(lines.len(), 4, "{said}");
}

#[test]
fn flags_describe_one_upstream_and_several_app_servers_are_its_urls() {
    let one = File::new("one-upstream", "[[upstream]]\nname = \"chat\"\nurls = [\"http://a\", \"http://b\"]\n");
    let arguments = ["check", "--config", one.path(), "--app-server", "http://c", "--app-server", "http://d"];
    let output = signalring(&arguments, &[]);
    let shown = stdout(&output);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let urls = "urls = [\"http://c\", \"http://d\"]";
    assert!(shown.lines().any(|line| line == format!("{urls:<44} # --app-server")), "{shown}");
    assert!(shown.contains("name = \"chat\""), "{shown}");

    let two = File::new("two-upstreams", "[[upstream]]\nurl = \"http://a\"\n\n[[upstream]]\nurl = \"http://b\"\n");
    let output = signalring(&["run", "--config", two.path(), "--pool-size", "8"], &[("SIGNALRING_APP_SERVER", "x,y")]);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    let path = two.path();
    for (place, key, name) in
        [("--pool-size", "connection_pool_size", "connection_pool_size"), ("SIGNALRING_APP_SERVER", "url", "url")]
    {
        let line = format!(
            "  {place}: upstream.{key}: the file has 2 upstreams ({path}:1, {path}:4), and this could be meant for any; \
             write {name} in the file, below the [[upstream]] it is meant for"
        );
        assert!(said.lines().any(|said| said == line), "{line}\n{said}");
    }
    assert!(said.contains("has 2 faults"), "{said}");
}

#[test]
fn secrets_are_never_printed() {
    let flags = ["--identity-signing-key", SIGNING_KEY];
    let arguments = |more: &[&'static str]| [&["check"], &APP[..], &flags[..], more].concat();
    let output = signalring(&arguments(&[]), &[("SIGNALRING_TOKEN_KEY", TOKEN_KEY)]);
    let shown = stdout(&output);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(shown.contains("token_key = \"(secret)\"") && shown.contains("signing_key = \"(secret)\""), "{shown}");
    assert!(!shown.contains("swordfish"), "{shown}");

    // Nor in faults, wherever the mistake is.
    for text in [
        "token_key = \"swordfish\"\n",
        "token_key = swordfish-swordfish\n",
        "token_key = \"swordfish-swordfish\n",
        "token_key = 'swordfish'swordfish\n",
        "token_key = [\"swordfish-swordfish\"]\n",
        "tokenkey = \"swordfish-swordfish\"\n",
        "token_key = \"swordfish\\qswordfish\"\n",
        "token_key = \"swordfish\\u0000swordfish\"\n",
        "token_key_file = \"/nonexistent\"\ntoken_key = \"swordfish-swordfish\"\n",
    ] {
        let file = File::new("secret", text);
        let output = signalring(&["check", "--config", file.path()], &[("SIGNALRING_TOKEN_KEYS", TOKEN_KEY)]);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(
            said.contains("SIGNALRING_TOKEN_KEYS: unknown variable") && !said.contains("swordfish"),
            "{text}\n{said}"
        );
        assert!(output.stdout.is_empty());
    }
    let twice = signalring(&arguments(&["--token-key", TOKEN_KEY, "--token-key", TOKEN_KEY]), &[]);
    assert_eq!(twice.status.code(), Some(2));
    assert!(!stderr(&twice).contains("swordfish"), "{}", stderr(&twice));
    let both = signalring(&arguments(&["--token-key", TOKEN_KEY, "--token-key-file", "Cargo.toml"]), &[]);
    assert_eq!(both.status.code(), Some(2));
    assert!(!stderr(&both).contains("swordfish"), "{}", stderr(&both));
}

#[test]
fn one_key_in_two_settings_is_a_fault() {
    let folder = everything("two-keys");
    let file = File::new("two-keys", &format!("token_key_file = \"{}\"\n", folder.path("token.key")));
    let arguments = ["check", "--config", file.path(), APP[0], APP[1]];
    let output = signalring(&arguments, &[("SIGNALRING_TOKEN_KEY", TOKEN_KEY)]);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        said.contains("  SIGNALRING_TOKEN_KEY: token_key: both token_key and token_key_file are given; "),
        "{said}"
    );
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
        let text = format!("{}\n{} = 1979-05-27\n", setting.table.header(), setting.name);
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

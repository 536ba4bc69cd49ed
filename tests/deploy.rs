//! What `deploy/` ships is checked against what it names: paths, commands, flags, ports, settings. `tests/clients/deploy.test.mjs` runs the
//! same files with the npm clients; what containers themselves do is told in deploy/README.md.

mod common;

use common::{App, needs, repository};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn deploy(name: &str) -> PathBuf {
    repository().join("deploy").join(name)
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// An empty folder that is gone after the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("signalring-deploy-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).expect("a folder can be made");
        Folder(path)
    }

    fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().expect("it is in the folder")).expect("folders can be made");
        fs::write(&path, content).expect("a file can be written");
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Runs it; panics with what it printed unless it succeeds.
fn succeeds(command: &mut Command) -> String {
    let Output { status, stdout, stderr } =
        command.output().unwrap_or_else(|error| panic!("{command:?} did not start: {error}"));
    let printed = String::from_utf8_lossy(&stdout).into_owned() + &String::from_utf8_lossy(&stderr);
    assert!(status.success(), "{command:?}: {status}\n{printed}");
    printed
}

fn signalring() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_signalring"));
    for (key, _) in std::env::vars_os().filter(|(key, _)| key.to_string_lossy().starts_with("SIGNALRING_")) {
        command.env_remove(key);
    }
    command
}

const KEY: &str = "sixteen bytes and a few more\n";

#[test]
fn the_scripts_please_shellcheck() {
    needs("shellcheck");
    succeeds(Command::new("shellcheck").arg(deploy("local.sh")).arg(deploy("seccomp.sh")));
}

#[test]
fn the_example_of_settings_passes_the_check() {
    let folder = Folder::new("settings");
    let file = folder.write("signalring.toml", &text(&deploy("signalring.toml")));
    folder.write("token.key", KEY);
    let printed = succeeds(signalring().args(["check", "--config"]).arg(&file));
    assert!(printed.contains("token_key_file = \""), "{printed}");
}

#[test]
fn systemd_takes_the_unit() {
    needs("systemd-analyze");
    let unit = text(&deploy("signalring.service"));
    let command = "ExecStart=/usr/local/bin/signalring run --config /etc/signalring/signalring.toml\n";
    assert!(unit.contains(command), "the settings are where the unit's own words install them");
    // There is no /usr/local/bin/signalring here, which is the one thing it would complain about.
    let folder = Folder::new("unit");
    let file = folder.write("signalring.service", &unit.replace("/usr/local/bin/signalring run", "/bin/true run"));
    let printed = succeeds(Command::new("systemd-analyze").arg("verify").arg(file));
    assert_eq!(printed, "", "it has warnings");
}

#[test]
fn io_uring_is_added_to_a_default_seccomp_profile() {
    needs("jq");
    let profile = r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[
        {"names":["read","write"],"action":"SCMP_ACT_ALLOW"},
        {"names":["io_uring_setup"],"action":"SCMP_ACT_ERRNO"},
        {"names":["clone3","io_uring_enter"],"action":"SCMP_ACT_ERRNO","errnoRet":38}]}"#;
    let folder = Folder::new("seccomp");
    let made = succeeds(Command::new(deploy("seccomp.sh")).arg(folder.write("default.json", profile)));
    let made: Value = serde_json::from_str(&made).expect("JSON");
    let expected = r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[
        {"names":["read","write"],"action":"SCMP_ACT_ALLOW"},
        {"names":["clone3"],"action":"SCMP_ACT_ERRNO","errnoRet":38},
        {"names":["io_uring_setup","io_uring_enter","io_uring_register"],"action":"SCMP_ACT_ALLOW"}]}"#;
    assert_eq!(made, serde_json::from_str::<Value>(expected).expect("JSON"));

    let refused = Command::new(deploy("seccomp.sh")).arg(folder.write("other.json", "{}")).output().expect("it starts");
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("this is no seccomp profile"));
}

/// Of a mapping, or a scalar as text: YAML writes numbers and booleans without quotes.
fn strings(value: &Value) -> Vec<(String, String)> {
    let plain = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_string);
    value.as_object().into_iter().flatten().map(|(key, value)| (key.clone(), plain(value))).collect()
}

fn list(value: &Value) -> Vec<&str> {
    value.as_array().expect("a list").iter().map(|entry| entry.as_str().expect("text")).collect()
}

/// What stands behind the last colon.
fn port(address: &str) -> u16 {
    address.rsplit(':').next().and_then(|port| port.parse().ok()).unwrap_or_else(|| panic!("{address} has no port"))
}

fn compose() -> Value {
    serde_saphyr::from_str(&text(&deploy("compose.yaml"))).expect("compose.yaml is YAML")
}

#[test]
fn the_containers_are_given_what_there_is() {
    let compose = compose();
    let services = compose["services"].as_object().expect("services");
    assert_eq!(services.keys().collect::<BTreeSet<_>>().len(), 4);
    let secret = compose["secrets"]["token_key"]["file"].as_str().expect("a file");
    let ignored = text(&repository().join(".gitignore"));
    assert!(ignored.contains("/deploy/token.key") && secret == "./token.key", "the key is never committed");
    let balancer = services["balancer"]["networks"]["public"]["ipv4_address"].as_str().expect("an address");
    let subnet = compose["networks"]["public"]["ipam"]["config"][0]["subnet"].as_str().expect("a network");
    assert!(subnet.starts_with(balancer.rsplit_once('.').expect("an address").0));

    for (name, service) in services {
        for volume in service["volumes"].as_array().into_iter().flatten() {
            let source = volume.as_str().expect("the short form").split(':').next().expect("a path");
            if !source.contains('/') {
                let volumes = compose["volumes"].as_object().expect("volumes");
                assert!(volumes.contains_key(source), "{name}: {source} is a volume");
                continue;
            }
            assert!(repository().join("deploy").join(source).is_file(), "{name}: {source} is a file here");
        }
        for network in service["networks"].as_array().into_iter().flatten() {
            assert!(compose["networks"][network.as_str().expect("a name")].is_object(), "{name}: {network}");
        }
        if service["image"] != "signalring" {
            continue;
        }
        let build = &service["build"];
        let context = repository().join("deploy").join(build["context"].as_str().expect("a path"));
        assert_eq!(context.canonicalize().unwrap(), repository().canonicalize().unwrap());
        assert!(context.join(build["dockerfile"].as_str().expect("a path")).is_file());

        // A flag that is not there is refused before the help is printed.
        let command = list(&service["command"]);
        succeeds(signalring().args(&command).arg("--help"));
        let test = list(&service["healthcheck"]["test"]);
        let [_, entry, health @ ..] = &test[..] else { panic!("{name}: no health check") };
        assert_eq!(*entry, "/signalring", "where the Dockerfile puts it");
        succeeds(signalring().args(health).arg("--help"));
        let asked = health.last().expect("a URL");
        let asked = port(asked.rsplit_once('/').expect("a path").0);

        if name == "app" {
            assert_eq!(port(command[2]), asked);
            continue;
        }
        // The settings of a node: the files where the container has them, and its environment.
        let [_, _, config] = command[..] else { panic!("{name}: {command:?}") };
        let root = Folder::new(name);
        let file = root.write(config.trim_start_matches('/'), &text(&deploy("signalring.toml")));
        let key = service["secrets"][0]["target"].as_str().expect("a path");
        root.write(key.trim_start_matches('/'), KEY);
        let mut environment: BTreeMap<String, String> = strings(&service["environment"]).into_iter().collect();
        // The journal is where a volume is, which takes over the owner of the folder that the image has there.
        let journal = environment["SIGNALRING_JOURNAL"].clone();
        assert!(list(&service["volumes"]).contains(&format!("journal:{journal}").as_str()));
        let copied = format!("COPY --from=build --chown=65532:65532 /source/journal {journal}\n");
        assert!(text(&deploy("Dockerfile")).contains(&copied), "{copied}");
        let folder = root.0.join(journal.trim_start_matches('/'));
        fs::create_dir_all(&folder).unwrap();
        environment.insert("SIGNALRING_JOURNAL".into(), folder.to_str().unwrap().into());
        let resolved = succeeds(signalring().args(["check", "--config"]).arg(&file).envs(environment.clone()));
        let resolved: toml::Table = toml::from_str(&resolved).expect("what check prints is TOML");
        assert_eq!(resolved["node_name"].as_str(), name.strip_prefix("node-"));
        assert_eq!(resolved["trusted_proxies"].as_array().unwrap()[0].as_str(), Some(balancer));
        assert!(resolved["token_key_file"].as_str().unwrap().ends_with(key));
        let admin = resolved["admin"].as_str().unwrap();
        assert_eq!(port(admin), asked);
        let listen = &resolved["listen"];
        let listen = listen.as_str().or_else(|| listen[0].as_str()).unwrap();
        let app = resolved["upstream"][0]["url"].as_str().unwrap();
        assert_eq!(app, format!("http://app:{}", port(list(&services["app"]["command"])[2])));

        // Where HAProxy finds it.
        let letter = name.strip_prefix("node-").unwrap().to_uppercase();
        let balancer = &services["balancer"]["environment"];
        assert_eq!(balancer[format!("NODE_{letter}")], format!("{name}:{}", port(listen)));
        assert_eq!(balancer[format!("NODE_{letter}_ADMIN_PORT")], port(admin).to_string());

        // Beyond this machine only HAProxy is published.
        for published in list(&service["ports"]) {
            assert!(published.starts_with("127.0.0.1:") && port(published) == port(admin), "{name}: {published}");
        }
        // A place in the file for each descriptor the node may want.
        let descriptors = service["ulimits"]["nofile"].as_u64().unwrap();
        assert!(descriptors as i64 > resolved["limits"]["max_clients"].as_integer().unwrap());
    }
}

#[test]
fn haproxy_takes_its_configuration_as_it_stands_and_as_the_containers_use_it() {
    needs("haproxy");
    let file = deploy("haproxy.cfg");
    let environment = strings(&compose()["services"]["balancer"]["environment"]);
    let names: BTreeSet<_> = environment.iter().map(|(name, _)| name.clone()).collect();
    let preset = text(&file);
    let preset = preset.lines().filter_map(|line| line.trim().strip_prefix("presetenv ")?.split_whitespace().next());
    assert_eq!(names, preset.map(str::to_string).collect());
    for environment in [vec![], environment] {
        let printed = succeeds(
            Command::new("haproxy")
                .args(["-c", "-f"])
                .arg(&file)
                .envs([("CONTROL_SOCKET", "/tmp/control.sock")])
                .envs(environment),
        );
        // The names of containers mean nothing here; HAProxy looks them up again while it runs.
        let warned = printed
            .lines()
            .find(|line| line.contains("[WARNING]") && !line.contains("could not resolve address 'node-"));
        assert_eq!(warned, None, "{printed}");
    }
}

/// An instruction of a Dockerfile, its lines joined.
fn instructions(dockerfile: &str) -> Vec<(String, String)> {
    let lines = dockerfile.lines().filter(|line| !line.trim_start().starts_with('#'));
    let text = lines.collect::<Vec<_>>().join("\n").replace("\\\n", " ");
    let split = |line: &str| line.split_once(' ').map(|(word, rest)| (word.to_string(), rest.trim().to_string()));
    text.lines().filter_map(split).collect()
}

#[test]
fn the_image_is_built_from_what_its_context_has() {
    let dockerfile = text(&deploy("Dockerfile"));
    let instructions = instructions(&dockerfile);
    let has = |word: &str, rest: &str| instructions.contains(&(word.into(), rest.into()));
    assert!(has("ARG", &format!("RUST_VERSION={}", env!("CARGO_PKG_RUST_VERSION"))));
    assert!(has("ARG", &format!("VERSION={}", env!("CARGO_PKG_VERSION"))));
    assert!(has("ENTRYPOINT", r#"["/signalring"]"#));
    let (_, health) = instructions.iter().find(|(word, _)| word == "HEALTHCHECK").expect("a health check");
    let health: Vec<String> = serde_json::from_str(health.split_once("CMD ").expect("a command").1).expect("a list");
    succeeds(signalring().args(&health[1..]).arg("--help"));

    let context: BTreeSet<String> = text(&repository().join(".dockerignore"))
        .lines()
        .filter_map(|line| line.strip_prefix('!').map(str::to_string))
        .collect();
    let copied = instructions.iter().filter(|(word, rest)| word == "COPY" && !rest.starts_with("--from"));
    let copied: BTreeSet<String> = copied
        .flat_map(|(_, rest)| {
            let mut words: Vec<String> = rest.split_whitespace().map(str::to_string).collect();
            words.pop();
            words
        })
        .collect();
    assert_eq!(copied, context);
    for path in copied {
        assert!(repository().join(&path).exists(), "{path}");
    }
}

/// Without an engine: the first stage's instructions in a folder instead of a container, and its binary in an empty root.
#[test]
#[ignore = "a release build of its own: cargo test --test deploy -- --ignored"]
fn the_image_holds_a_binary_that_needs_nothing_else() {
    let folder = Folder::new("image");
    let source = folder.0.join("source");
    let mut environment = vec![("CARGO_TARGET_DIR".to_string(), "target".to_string())];
    for (word, rest) in instructions(&text(&deploy("Dockerfile"))).into_iter().skip(2) {
        match word.as_str() {
            "FROM" => break,
            "WORKDIR" => fs::create_dir_all(&source).unwrap(),
            "ENV" => {
                // NAME=VALUE or NAME="a value", as a shell reads them.
                let printed = succeeds(Command::new("sh").args(["-c", &format!("env -i {rest} env")]));
                environment.extend(printed.lines().filter_map(|line| {
                    line.split_once('=').map(|(name, value)| (name.to_string(), value.to_string()))
                }));
            }
            "COPY" => {
                let mut paths: Vec<&str> = rest.split_whitespace().collect();
                let target = source.join(paths.pop().unwrap());
                fs::create_dir_all(target.parent().unwrap()).unwrap();
                for path in paths {
                    // A folder's content goes into the folder that may be there.
                    let from = repository().join(path);
                    let from = if from.is_dir() { from.join(".") } else { from };
                    if from.ends_with(".") {
                        fs::create_dir_all(&target).unwrap();
                    }
                    succeeds(Command::new("cp").arg("-r").arg(from).arg(&target));
                }
            }
            "RUN" => {
                succeeds(Command::new("sh").args(["-c", &rest]).current_dir(&source).envs(environment.clone()));
            }
            other => panic!("{other} {rest}: the test does not know it"),
        }
    }
    let binary = source.join("signalring");
    let headers = succeeds(Command::new("readelf").arg("-lW").arg(&binary));
    assert!(!headers.contains("INTERP"), "it wants a loader:\n{headers}");

    // In a root with nothing but what an engine puts there, it finds an app server by the name of its container.
    let app = App::start();
    let root = Folder::new("root");
    root.write("etc/hosts", "127.0.0.1 app\n");
    fs::copy(&binary, root.0.join("signalring")).unwrap();
    let url = format!("http://app:{}/__double", app.address.port());
    let ask = |url: &str| {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "chroot"]).arg(&root.0).args(["/signalring", "health", url]);
        command
    };
    succeeds(&mut ask(&url));
    let unknown = ask(&url.replace("app", "nobody.invalid")).output().unwrap();
    assert_eq!(unknown.status.code(), Some(1), "{}", String::from_utf8_lossy(&unknown.stderr));
}

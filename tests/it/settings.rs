//! Settings from flags, environment variables and a file: their precedence, their errors, `config check` and `config print`.

use std::path::{Path, PathBuf};
use std::process::Output;

use tempfile::TempDir;
use tokio::process::Command;

use crate::common::*;

/// A directory with this file of settings.
fn file(text: &str) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("settings.toml");
    std::fs::write(&path, text).unwrap();
    (dir, path)
}

/// Runs the binary with these arguments and variables: its exit code, and what it prints on both outputs.
async fn run(args: &[&str], variables: &[(&str, &str)]) -> (Option<i32>, String) {
    let mut command = Command::new(BINARY);
    hide_variables_of_tests(&mut command);
    command.args(args).envs(variables.iter().copied()).kill_on_drop(true);
    let Output { status, stdout, stderr } = soon(command.output()).await.unwrap();
    (status.code(), String::from_utf8([stdout, stderr].concat()).unwrap())
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The line of `config print` for a setting.
fn line<'a>(printed: &'a str, key: &str) -> &'a str {
    let begins = |line: &&str| line.trim_start_matches("# ").starts_with(&format!("{key} ="));
    printed.lines().find(begins).unwrap_or_else(|| panic!("{key} is printed: {printed}"))
}

#[tokio::test]
async fn flags_override_the_environment_and_that_the_file() {
    let (_dir, path) = file(
        "poll-timeout = \"20s\"\nheartbeat = \"21s\"\nhello-timeout = \"22s\"\nmax-payload = \"64kB\"\n\
         allow-origin = [\"https://a.example\", \"https://b.example\"]\nlegacy-allow-origin = []\n",
    );
    let args = ["config", "print", "--config", text(&path), "--poll-timeout", "40s"];
    let variables = [("X0_MSG_POLL_TIMEOUT", "30s"), ("X0_MSG_HEARTBEAT", "31s"), ("X0_MSG_AUTH", "token")];
    let (code, printed) = run(&args, &variables).await;
    assert_eq!(code, Some(0), "{printed}");
    for (key, value, source) in [
        ("poll-timeout", "\"40s\"", "--poll-timeout"),
        ("heartbeat", "\"31s\"", "X0_MSG_HEARTBEAT"),
        ("hello-timeout", "\"22s\"", &format!("{}:3", path.display())),
        ("max-payload", "\"64kB\"", &format!("{}:4", path.display())),
        ("allow-origin", r#"["https://a.example", "https://b.example"]"#, &format!("{}:5", path.display())),
        ("legacy-allow-origin", "[]", &format!("{}:6", path.display())),
        ("ttl", "\"7d\"", "default"),
        ("send-rate", "100", "default"),
    ] {
        let line = line(&printed, key);
        let (assignment, comment) = line.trim_start_matches("# ").split_once(" # ").unwrap();
        assert_eq!((assignment.trim(), comment), (&*format!("{key} = {value}"), source));
    }
    // What is printed is a file with the same settings.
    let (_dir, again) = file(&printed);
    let (code, printed_again) = run(&["config", "print", "--config", text(&again)], &[]).await;
    assert_eq!(code, Some(0), "{printed_again}");
    for key in ["poll-timeout", "heartbeat", "max-payload", "legacy-allow-origin", "auth"] {
        let value = |printed| line(printed, key).split(" # ").next().unwrap().trim().to_owned();
        assert_eq!(value(&printed_again), value(&printed));
    }
}

#[tokio::test]
async fn a_broker_serves_with_the_settings_of_its_file() {
    let (_dir, path) = file("max-payload = 2048\ndurability = \"memory\"\n");
    for by_variable in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new(BINARY);
        match by_variable {
            true => command.env("X0_MSG_CONFIG", &path),
            false => command.arg("--config").arg(&path),
        };
        let server = TestServer::spawn(dir.path(), command).await;
        let mut ws = server.ws("?session=A").await;
        let welcome = ws.recv().await;
        assert_eq!((&welcome["max_payload"], &welcome["durability"]), (&2048.into(), &"memory".into()));
        let log = server.stop().await;
        assert!(!log.contains("X0_MSG_CONFIG"), "it is a known variable: {log}");
    }
}

#[tokio::test]
async fn a_file_that_is_wrong_is_refused_with_its_lines() {
    let (_dir, path) =
        file("auth = \"none\"\nlisten = \"127.0.0.1:0\"\npoll_timeout = \"1s\"\nttl = \"soon\"\n");
    for args in [&["--config", text(&path)][..], &["config", "check", "--config", text(&path)]] {
        let (code, said) = run(args, &[]).await;
        assert_eq!(code, Some(2), "{said}");
        for (line, reason) in [
            (1, "auth: \"none\" must be one of open, token"),
            (3, "poll_timeout: no setting has this name; poll-timeout may be meant"),
            (4, "ttl: \"soon\" "),
        ] {
            assert!(said.contains(&format!("{}:{line}: {reason}", path.display())), "{said}");
        }
    }
    let (code, said) = run(&["config", "check", "--config", "/nowhere.toml"], &[]).await;
    assert!(code == Some(2) && said.contains("/nowhere.toml: No such file"), "{said}");
    // Settings of all sources are checked against each other.
    let (_dir, path) = file("ttl = \"20d\"\n");
    let (code, said) = run(&["--config", text(&path), "--max-ttl", "10d"], &[]).await;
    assert!(code == Some(2) && said.contains("--ttl 20days is longer than --max-ttl 10days"), "{said}");
}

#[tokio::test]
async fn a_check_of_the_store_finds_it_by_the_file_of_settings() {
    let store = tempfile::tempdir().unwrap();
    let server = TestServer::at(store.path(), &[]).await;
    server.send("A", "B", 1.into()).await;
    server.stop().await;
    let (dir, path) = file(&format!("data-dir = {:?}\nlisten = \"127.0.0.1:0\"\n", text(store.path())));
    for (args, variables) in [
        (&["check", "--json", "--config", text(&path)][..], &[][..]),
        (&["check", "--json"], &[("X0_MSG_CONFIG", text(&path))]),
    ] {
        let (code, said) = run(args, variables).await;
        assert!(code == Some(0) && said.contains("\"messages\":1"), "{args:?}: {said}");
    }
    let nowhere = dir.path().join("nowhere");
    let (code, said) = run(&["check", "--config", text(&path), "--data-dir", text(&nowhere)], &[]).await;
    assert!(code == Some(1) && said.contains(text(&nowhere)), "a flag goes first: {said}");
}

#[tokio::test]
async fn a_check_reads_keys_and_certificates_and_starts_nothing() {
    let (dir, path) = file("auth = \"token\"\nlisten = \"127.0.0.1:1\"\n");
    let check = ["config", "check", "--config", text(&path)];
    let (code, said) = run(&check, &[]).await;
    assert!(code == Some(1) && said.contains("--auth token needs keys"), "{said}");
    let key = dir.path().join("key");
    let token_key_file = ("X0_MSG_TOKEN_KEY_FILE", text(&key));
    let (code, said) = run(&check, &[token_key_file]).await;
    assert!(code == Some(1) && said.contains(&format!("--token-key-file {}: ", key.display())), "{said}");
    std::fs::write(&key, "k".repeat(32)).unwrap();
    let (code, said) = run(&check, &[token_key_file]).await;
    assert_eq!((code, said.as_str()), (Some(0), "the settings are valid\n"));
    // Each file that is wrong is named.
    let tls = [token_key_file, ("X0_MSG_TLS_CERT", text(&key)), ("X0_MSG_TLS_KEY", text(&key))];
    let api_keys = ("X0_MSG_API_KEY_FILE", text(&path));
    let (code, said) = run(&check, &[&tls[..], &[api_keys]].concat()).await;
    assert!(code == Some(1) && said.contains("--tls-cert") && said.contains("--api-key-file"), "{said}");
    // A warning is no error.
    let (code, said) = run(&check, &[token_key_file, ("X0_MSG_LISTN", "x")]).await;
    assert!(code == Some(0) && said.contains("X0_MSG_LISTEN may be meant"), "{said}");
    let variables = [("X0_MSG_SERVER_PORT", "tcp://10.0.0.1:80"), ("X0_MSG_SERVER_SERVICE_HOST", "10.0.0.1")];
    let (code, said) = run(&check, &[&[token_key_file], &variables[..]].concat()).await;
    assert_eq!((code, said.as_str()), (Some(0), "the settings are valid\n"));
}

#[tokio::test]
async fn the_file_of_defaults_is_valid_and_changes_nothing() {
    let (code, defaults) = run(&["config", "print", "--defaults"], &[]).await;
    assert_eq!(code, Some(0));
    let (_dir, path) = file(&defaults);
    let (code, printed) = run(&["config", "print", "--config", text(&path)], &[]).await;
    assert_eq!(code, Some(0), "{printed}");
    let (_, without) = run(&["config", "print"], &[]).await;
    let values = |printed: &str| -> Vec<String> {
        printed.lines().map(|line| line.split(" # ").next().unwrap().trim().to_owned()).collect()
    };
    assert_eq!(values(&printed), values(&without));
    assert!(printed.contains(&format!("# {}:", path.display())), "{printed}");
}

#[tokio::test]
async fn secrets_are_no_flags_and_are_not_printed() {
    let (dir, path) = file("auth = \"token\"\n");
    let variables = [
        ("X0_MSG_TOKEN_SECRET", "a-secret-of-tokens-0123456789-0123456789"),
        ("X0_MSG_API_KEYS", "shop:an-api-key-0123456789-0123456789-0123456789"),
        ("X0_MSG_NATS_TOKEN", "the-token-of-nats"),
        ("X0_MSG_NATS_URL", "nats://ann:hunter2@nats.example:4222"),
        ("X0_MSG_TOKEN_JWKS_URL", "https://idp.example/keys?key=s3cret"),
    ];
    for args in [
        &["config", "print", "--config", text(&path)][..],
        &["config", "check", "--config", text(&path)],
        &["--help"],
    ] {
        let (code, said) = run(args, &variables).await;
        assert_eq!(code, Some(0), "{said}");
        for secret in ["a-secret-of-tokens", "an-api-key", "the-token-of-nats", "hunter2", "s3cret"] {
            assert!(!said.contains(secret), "{args:?}: {said}");
        }
    }
    let (_, printed) = run(&["config", "print"], &variables).await;
    assert!(printed.contains("# X0_MSG_API_KEYS is set in the environment"), "{printed}");
    // A credential of systemd.
    std::fs::write(dir.path().join("keys"), "k".repeat(32)).unwrap();
    let (_other, by_credential) = file("auth = \"token\"\ntoken-key-file = \"credential:keys\"\n");
    let check = ["config", "check", "--config", text(&by_credential)];
    let (code, said) = run(&check, &[("CREDENTIALS_DIRECTORY", text(dir.path()))]).await;
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = run(&check, &[]).await;
    assert!(code == Some(2) && said.contains("CREDENTIALS_DIRECTORY is not set"), "{said}");
    // In a command line everyone can read them.
    for args in [
        ["--nats-url", "nats://ann:hunter2@nats.example"],
        ["--nats-token", "x"],
        ["--token-secret", "x"],
        ["--api-keys", "x:y"],
    ] {
        let (code, said) = run(&args, &[]).await;
        assert!(code == Some(2) && !said.contains("hunter2"), "{args:?}: {said}");
    }
}

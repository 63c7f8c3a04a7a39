//! Only the account of the broker can use the files of a store.

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::json;

use crate::common::*;

/// An account without any rights.
const NOBODY: u32 = 65534;

/// Whether this test may act as another account.
fn is_root() -> bool {
    let is_root = fs::metadata("/proc/self").unwrap().uid() == 0;
    if !is_root {
        println!("not tested: only root may act as another account");
    }
    is_root
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// A directory with this mode, in one that all accounts may look into.
fn directory(mode: u32) -> (tempfile::TempDir, PathBuf) {
    let outer = tempfile::tempdir().unwrap();
    set_mode(outer.path(), 0o755);
    let dir = outer.path().join("data");
    fs::create_dir(&dir).unwrap();
    set_mode(&dir, mode);
    (outer, dir)
}

fn as_nobody(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    command.uid(NOBODY).gid(NOBODY);
    command
}

/// The broker with a umask that takes no rights away.
fn with_open_umask() -> tokio::process::Command {
    let mut command = tokio::process::Command::new("sh");
    command.args(["-c", "umask 000; exec \"$0\"", BINARY]);
    command
}

/// Checks that nobody but the owner has rights on a directory and what is in it. Returns what is in it.
fn assert_private(dir: &Path) -> Vec<PathBuf> {
    assert_eq!(fs::symlink_metadata(dir).unwrap().mode() & 0o7777, 0o700, "{}", dir.display());
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(assert_private(&path)),
            false => {
                let mode = fs::symlink_metadata(&path).unwrap().mode() & 0o7777;
                assert_eq!(mode, 0o600, "{}", path.display());
            }
        }
        found.push(path);
    }
    found
}

fn names(paths: &[PathBuf]) -> Vec<&str> {
    paths.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect()
}

/// Changes the first payload with this text in a database that is not in use.
fn damage(database: &Path, text: &str) {
    let mut bytes = fs::read(database).unwrap();
    let at = bytes.windows(text.len()).position(|part| part == text.as_bytes()).unwrap();
    bytes[at] ^= 1;
    fs::write(database, bytes).unwrap();
}

#[tokio::test]
async fn whatever_the_umask_a_store_is_private_also_after_damage() {
    let (_outer, dir) = directory(0o777);
    let server = TestServer::spawn(&dir, with_open_umask()).await;
    server.send("A", "B", json!("damaged payload")).await;
    server.send("A", "B", json!("intact")).await;
    let found = assert_private(&dir);
    for name in ["store.db", "store.db-wal", "store.db-shm", "lock", "format", "running", "reserve"] {
        assert!(names(&found).contains(&name), "{found:?}");
    }
    server.stop().await;
    damage(&dir.join("store.db"), "damaged payload");

    // The files of an earlier version, which left modes to the umask.
    set_mode(&dir, 0o755);
    for path in &found {
        if path.exists() {
            set_mode(path, 0o666);
        }
    }
    let server = TestServer::spawn(&dir, with_open_umask()).await;
    let found = assert_private(&dir);
    assert!(names(&found).iter().any(|name| name.starts_with("damaged-")), "{found:?}");
    let messages = server.read_all("B").await.messages;
    assert_eq!(messages.into_values().collect::<Vec<_>>(), [json!("intact")]);
}

#[tokio::test]
async fn another_account_neither_reads_nor_locks_a_store() {
    if !is_root() {
        return;
    }
    let (outer, dir) = directory(0o755);
    let server = TestServer::spawn(&dir, with_open_umask()).await;
    server.send("A", "B", json!("secret")).await;
    let is_allowed = |program: &str, args: &[&str], path: &Path| {
        let mut command = as_nobody(program);
        command.args(args).arg(path).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().unwrap().success()
    };
    assert!(is_allowed("ls", &[], outer.path()), "it can reach the directory");
    assert!(!is_allowed("ls", &[], &dir));
    for path in assert_private(&dir) {
        assert!(!is_allowed("cat", &[], &path), "{}", path.display());
        assert!(!is_allowed("flock", &["--nonblock", "--command", "true"], &path), "{}", path.display());
    }
    server.stop().await;
}

#[tokio::test]
async fn a_lock_held_by_another_account_does_not_stop_the_start() {
    if !is_root() {
        return;
    }
    // As an earlier version left them.
    let (_outer, dir) = directory(0o755);
    let lock = dir.join("lock");
    fs::write(&lock, "").unwrap();
    set_mode(&lock, 0o644);
    let mut command = as_nobody("flock");
    command.arg(&lock).args(["sh", "-c", "echo held; exec cat"]);
    let mut holder = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "held\n");

    let server = TestServer::at(&dir, &[]).await;
    server.send("A", "B", json!(1)).await;
    let Err(log) = TestServer::try_at(&dir).await else { panic!("two processes use one store") };
    assert!(log.contains("another process uses the store"), "{log}");
    // The end of its input ends it.
    drop(holder.stdin.take());
    assert!(holder.wait().unwrap().success());
}

#[tokio::test]
async fn links_in_the_directory_are_not_written_through() {
    let (outer, dir) = directory(0o777);
    let victim = outer.path().join("victim");
    fs::write(&victim, "precious").unwrap();
    let link = |name: &str| std::os::unix::fs::symlink(&victim, dir.join(name)).unwrap();
    for name in ["lock", "reserve", "store.db-shm", "format.new", "running.new"] {
        link(name);
    }
    let server = TestServer::at(&dir, &[]).await;
    server.send("A", "B", json!(1)).await;
    server.stop().await;
    assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
    for name in ["store.db", "store.db-wal", "running"] {
        _ = fs::remove_file(dir.join(name));
        link(name);
        let Err(log) = TestServer::try_at(&dir).await else { panic!("{name} is a link") };
        assert!(log.contains(name) && log.contains("symbolic link") && log.contains("--data-dir"), "{log}");
        fs::remove_file(dir.join(name)).unwrap();
    }
    assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
}

#[tokio::test]
async fn in_a_directory_of_another_account_the_store_has_a_private_directory() {
    if !is_root() {
        return;
    }
    // A volume of root that a group may write to.
    let (outer, dir) = directory(0o770);
    chown(&dir, None, Some(NOBODY)).unwrap();
    let binary = outer.path().join("broker");
    fs::hard_link(BINARY, &binary).or_else(|_| fs::copy(BINARY, &binary).map(|_| ())).unwrap();
    let broker = || tokio::process::Command::from(as_nobody(&binary));

    let server = TestServer::spawn(&dir, broker()).await;
    server.send("A", "B", json!("kept")).await;
    let log = server.stop().await;
    let inner = dir.join("x0-msg-store");
    assert!(log.contains(inner.to_str().unwrap()), "{log}");
    assert_eq!(fs::metadata(&dir).unwrap().mode() & 0o7777, 0o770, "it is not ours");
    assert!(names(&assert_private(&inner)).contains(&"store.db"));
    assert!(check(&dir).0, "`check` finds it");

    // An earlier version had it in the directory itself.
    for path in assert_private(&inner) {
        fs::rename(&path, dir.join(path.file_name().unwrap())).unwrap();
    }
    fs::remove_dir(&inner).unwrap();
    let server = TestServer::spawn(&dir, broker()).await;
    assert!(names(&assert_private(&inner)).contains(&"store.db"));
    assert_eq!(
        names(&fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>()),
        ["x0-msg-store"]
    );
    let messages = server.read_all("B").await.messages;
    assert_eq!(messages.into_values().collect::<Vec<_>>(), [json!("kept")]);
    server.stop().await;

    let Err(log) = TestServer::try_at(&dir).await else { panic!("it belongs to another account") };
    assert!(log.contains("account") && log.contains("--data-dir"), "{log}");
}

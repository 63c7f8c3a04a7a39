//! Which store it is: a copy of a store begins a new epoch, and the store itself keeps its epoch wherever it is mounted.

use std::fs;
use std::path::Path;

use rusqlite::Connection;
use serde_json::json;

use crate::common::*;

async fn epoch(server: &TestServer) -> String {
    server.get("/v1/messages?session=A&wait=0").await.json()["epoch"].as_str().unwrap().to_owned()
}

/// Overlays, FUSE and network file systems may number files anew with each mount, or at any moment.
#[tokio::test]
async fn a_store_whose_inode_changes_keeps_its_epoch() {
    let (faults, dir) = (Faults::new(), tempfile::tempdir().unwrap());
    let server = faults.server(dir.path(), &[]).await;
    let before = epoch(&server).await;
    faults.set("inode", "");
    let seq = server.send("B", "A", json!("while it changes")).await;
    assert_eq!(epoch(&server).await, before, "the broker goes on");
    server.stop().await;
    let server = faults.server(dir.path(), &[]).await;
    let reply = server.get(&format!("/v1/messages?session=A&after={seq}&epoch={before}&wait=0")).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    assert_eq!(reply.json()["epoch"], *before);
    server.stop().await;
    faults.clear("inode");
    assert_eq!(epoch(&faults.server(dir.path(), &[]).await).await, before);
}

#[tokio::test]
async fn a_moved_store_keeps_its_epoch_and_each_copy_begins_another_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::create_dir(path("first")).unwrap();
    let server = TestServer::at(&path("first"), &[]).await;
    let before = epoch(&server).await;
    server.stop().await;
    fs::rename(path("first"), path("moved")).unwrap();
    let copy = |name: &str| {
        let copied = std::process::Command::new("cp").arg("-a").args([path("moved"), path(name)]).status();
        assert!(copied.unwrap().success());
    };
    copy("copy");
    copy("other");
    let mut epochs = Vec::new();
    for name in ["moved", "copy", "other"] {
        epochs.push(epoch(&TestServer::at(&path(name), &[]).await).await);
    }
    assert_eq!(epochs[0], before);
    epochs.sort();
    epochs.dedup();
    assert_eq!(epochs.len(), 3, "no two share an epoch");
}

fn stored_number(dir: &Path) -> i64 {
    let connection = Connection::open(dir.join("store.db")).unwrap();
    connection.query_row("SELECT inode FROM store", [], |row| row.get(0)).unwrap()
}

/// A store that was made where the time of a file is not known, or by an older version, has the inode in it.
#[tokio::test]
async fn a_store_that_is_known_by_its_inode_keeps_its_epoch() {
    use std::os::unix::fs::MetadataExt;
    let (faults, dir) = (Faults::new(), tempfile::tempdir().unwrap());
    faults.set("no-birth-time", "");
    let server = faults.server(dir.path(), &[]).await;
    let before = epoch(&server).await;
    server.stop().await;
    let inode = fs::metadata(dir.path().join("store.db")).unwrap().ino();
    assert_eq!(u64::try_from(stored_number(dir.path())).unwrap(), inode);
    faults.clear("no-birth-time");
    for _ in 0..2 {
        let server = faults.server(dir.path(), &[]).await;
        assert_eq!(epoch(&server).await, before);
        server.stop().await;
        assert!(stored_number(dir.path()) > i64::try_from(inode).unwrap(), "now it is known by its time");
    }
}

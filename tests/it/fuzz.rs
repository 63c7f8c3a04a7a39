//! A short run of the fuzz targets (`tests/fuzz`) with fixed seeds: the recordings, earlier findings, and mutations of
//! both.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use fastrand::Rng;
use serde_json::Value;
use x0_msg_server::fuzzing;

/// Mutated inputs for each target.
const CHANGES: usize = 20_000;

type Target = (&'static str, fn(&[u8]));

const TARGETS: [Target; 6] = [
    ("native_frame", fuzzing::native_frame),
    ("legacy_body", fuzzing::legacy_body),
    ("legacy_query", fuzzing::legacy_query),
    ("token", fuzzing::token),
    ("websocket", fuzzing::websocket),
    ("http1", fuzzing::http1),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests")
}

/// The bodies and queries of the recorded exchanges.
fn recorded() -> (BTreeSet<Vec<u8>>, BTreeSet<Vec<u8>>) {
    let (mut bodies, mut queries) = (BTreeSet::new(), BTreeSet::new());
    for file in std::fs::read_dir(root().join("fixtures/legacy/scenarios")).unwrap() {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        walk(&serde_json::from_str(&text).unwrap(), &mut bodies, &mut queries);
    }
    (bodies, queries)
}

fn walk(value: &Value, bodies: &mut BTreeSet<Vec<u8>>, queries: &mut BTreeSet<Vec<u8>>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| walk(item, bodies, queries)),
        Value::Object(fields) => {
            if let Some(Value::String(body)) = fields.get("body") {
                bodies.insert(body.clone().into_bytes());
            }
            for target in ["target", "url", "path"] {
                if let Some(Value::String(target)) = fields.get(target)
                    && let Some((_, query)) = target.split_once('?')
                {
                    queries.insert(query.to_owned().into_bytes());
                }
            }
            fields.values().for_each(|value| walk(value, bodies, queries));
        }
        _ => {}
    }
}

fn seeds(target: &str) -> Vec<Vec<u8>> {
    let (bodies, queries) = recorded();
    assert!(bodies.len() > 50 && queries.len() > 50, "{} bodies, {} queries", bodies.len(), queries.len());
    let mut seeds: BTreeSet<Vec<u8>> = match target {
        "native_frame" | "legacy_body" => bodies,
        "legacy_query" => queries,
        _ => BTreeSet::new(),
    };
    for file in std::fs::read_dir(root().join("fuzz/corpus").join(target)).unwrap() {
        seeds.insert(std::fs::read(file.unwrap().path()).unwrap());
    }
    seeds.into_iter().collect()
}

/// One mutation: of a byte, a range, or the end.
fn changed(random: &mut Rng, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = seeds[random.usize(..seeds.len())].clone();
    for _ in 0..random.usize(1..6) {
        let at = random.usize(..=bytes.len());
        match random.u8(..6) {
            0 if at < bytes.len() => bytes[at] = random.u8(..),
            1 => bytes.insert(at, *random.choice(br#"{}[]":,\0-.=&%e"#).unwrap()),
            2 if at < bytes.len() => drop(bytes.remove(at)),
            3 => bytes.truncate(at),
            4 => {
                let other = &seeds[random.usize(..seeds.len())];
                let from = random.usize(..=other.len());
                bytes.splice(at..at, other[from..].iter().take(40).copied());
            }
            _ => {
                let end = random.usize(at..=bytes.len());
                let part = bytes[at..end].to_vec();
                bytes.splice(at..at, part);
            }
        }
    }
    bytes
}

#[test]
fn parsers_survive_mutated_input() {
    let keep = std::env::var_os("X0_MSG_SEEDS").map(PathBuf::from);
    for (name, run) in TARGETS {
        let seeds = seeds(name);
        if let Some(dir) = &keep {
            // The fuzzer begins with the same seeds.
            let dir = dir.join(name);
            std::fs::create_dir_all(&dir).unwrap();
            for (n, seed) in seeds.iter().enumerate() {
                std::fs::write(dir.join(n.to_string()), seed).unwrap();
            }
        }
        seeds.iter().for_each(|seed| run(seed));
        let mut random = Rng::with_seed(4711);
        // A connection takes longer than a parser.
        let changes = if name == "http1" { CHANGES / 8 } else { CHANGES };
        for _ in 0..changes {
            run(&changed(&mut random, &seeds));
        }
    }
}

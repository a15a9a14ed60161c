//! Every input that the fuzzer's corpus has, on stable Rust and with each `cargo test`: what was found once stays
//! mended.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use sockeye::fuzzing::TARGETS;

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz")
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|err| panic!("{}: {err}", folder.display()));
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    paths
}

#[test]
fn every_input_of_the_corpus_is_harmless() {
    for (name, target) in TARGETS {
        let inputs = entries(&fuzz().join("corpus").join(name));
        assert!(!inputs.is_empty(), "{name} has no corpus");
        for input in inputs {
            // Shown by the test if the next line panics.
            println!("{}", input.display());
            target(&fs::read(&input).expect("a file"));
        }
    }
}

#[test]
fn every_target_is_fuzzed_and_replayed() {
    let names = |folder: &str| -> BTreeSet<String> {
        let stem = |path: PathBuf| path.file_stem().and_then(|stem| stem.to_str()).expect("a name").to_owned();
        entries(&fuzz().join(folder)).into_iter().map(stem).collect()
    };
    let targets: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(names("fuzz_targets"), targets);
    assert_eq!(names("corpus"), targets);
    let manifest = fs::read_to_string(fuzz().join("Cargo.toml")).expect("the manifest");
    for target in &targets {
        assert!(manifest.contains(&format!("name = \"{target}\"")), "{target} is in no [[bin]]");
    }
}

//! The walk in docs/how-it-works.md names files and functions: they are there, and it goes through few files, once each.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

#[test]
fn each_step_of_the_walk_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let text = fs::read_to_string(root.join("docs/how-it-works.md")).expect("the page");
    let steps: Vec<(&str, &str)> =
        text.split('`').filter_map(|code| code.split_once(".rs: ")).filter(|(_, name)| !name.contains(' ')).collect();
    assert!(steps.len() >= 10, "the walk is gone: {steps:?}");
    let mut files: Vec<&str> = Vec::new();
    for (file, function) in steps {
        let source =
            fs::read_to_string(root.join(format!("{file}.rs"))).unwrap_or_else(|err| panic!("{file}.rs: {err}"));
        let declared = [format!("fn {function}("), format!("fn {function}<")];
        assert!(declared.iter().any(|text| source.contains(text)), "{file}.rs has no function {function}");
        if files.last() != Some(&file) {
            files.push(file);
        }
    }
    let distinct: BTreeSet<&str> = files.iter().copied().collect();
    assert!(distinct.len() <= 14, "{} files", distinct.len());
    assert_eq!(distinct.len(), files.len(), "the walk comes back to a file");
}

//! The rooms of `src/` and who may enter which: imports follow this list, and nothing goes round in a circle.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Room, and the rooms that it may import from; each stands below all that import from it.
const MAY_IMPORT: [(&str, &[&str]); 14] = [
    ("fuzzing", &["config", "export", "flows", "ingest", "metrics", "model", "names", "owners"]),
    ("control", &["api", "export", "flows", "ingest", "metrics", "model", "names", "owners", "threads"]),
    ("api", &["export", "flows", "ingest", "log", "metrics", "model", "names", "owners", "threads"]),
    ("metrics", &["export", "flows", "model", "names", "owners", "threads"]),
    ("ingest", &["model", "threads"]),
    ("export", &["flows", "model", "names", "owners", "threads"]),
    ("flows", &["model", "names", "owners"]),
    ("owners", &["config", "model", "threads"]),
    ("names", &["model"]),
    ("config", &["model"]),
    ("threads", &["model", "privileges"]),
    ("log", &["model", "privileges"]),
    ("privileges", &[]),
    ("model", &[]),
];

/// Rooms that the files below a path import from: what follows `crate::`.
fn imports(path: &Path, found: &mut BTreeSet<String>) {
    if path.is_dir() {
        for entry in fs::read_dir(path).expect("a folder").flatten() {
            imports(&entry.path(), found);
        }
    } else if path.extension().is_some_and(|extension| extension == "rs") {
        let text = fs::read_to_string(path).expect("a source file");
        let rooms = text.split("crate::").skip(1).filter_map(|rest| rest.split(|c: char| !c.is_alphanumeric()).next());
        found.extend(rooms.filter(|room| !room.is_empty()).map(str::to_owned));
    }
}

#[test]
fn imports_follow_the_list_and_never_go_in_a_circle() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for (number, (room, allowed)) in MAY_IMPORT.iter().enumerate() {
        let below = MAY_IMPORT[number + 1..].iter().map(|(room, _)| *room).collect::<Vec<_>>();
        assert!(allowed.iter().all(|other| below.contains(other)), "{room}: the list itself goes up");
        let mut found = BTreeSet::new();
        if src.join(room).is_dir() {
            imports(&src.join(room), &mut found);
        }
        let file = src.join(format!("{room}.rs"));
        if file.exists() {
            imports(&file, &mut found);
        }
        found.remove(*room);
        let stray: Vec<_> = found.iter().filter(|other| !allowed.contains(&other.as_str())).collect();
        assert!(stray.is_empty(), "{room} imports from {stray:?}: move what is shared down, or say why in this list");
    }
    let files = ["agent.rs", "check.rs", "cli.rs", "lib.rs", "main.rs", "reload.rs", "settings.rs", "systemd.rs"];
    let entries = fs::read_dir(&src).expect("a folder").flatten();
    let rooms = entries.filter(|entry| !files.iter().any(|file| entry.file_name() == *file)).count();
    assert_eq!(rooms, MAY_IMPORT.len(), "each is in the list, but for those that put all of it together");
}

//! Where manifests come from: files, folders, standard input. Everything is bounded.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use super::finding::{Finding, Level};

/// Greatest file that is read.
pub(super) const MOST_BYTES: u64 = 64 << 20;
/// Files that one run looks at.
const MOST_FILES: usize = 200_000;
/// How deep folders are followed.
const MOST_DEPTH: usize = 64;
/// What could be a manifest.
const ENDINGS: [&str; 3] = ["yaml", "yml", "json"];

/// The files behind the arguments, and what cannot be read of them.
pub(super) fn files(arguments: &[PathBuf]) -> (Vec<PathBuf>, Vec<Finding>) {
    let mut walk = Walk::default();
    for path in arguments {
        if path.is_dir() { walk.folder(path, 0) } else { walk.file(path.clone()) }
    }
    (walk.files, walk.findings)
}

#[derive(Default)]
struct Walk {
    files: Vec<PathBuf>,
    findings: Vec<Finding>,
}

impl Walk {
    fn file(&mut self, path: PathBuf) {
        match self.files.len().cmp(&MOST_FILES) {
            std::cmp::Ordering::Less => self.files.push(path),
            std::cmp::Ordering::Equal if self.findings.iter().all(|f| f.rule != "file/too-large") => {
                self.fail(
                    "file/too-large",
                    &path,
                    &format!("more than {MOST_FILES} files; the rest is not read"),
                );
            }
            _ => {}
        }
    }

    fn fail(&mut self, rule: &str, path: &Path, what: &str) {
        self.findings.push(Finding::of_file(Level::Error, rule, &path.display().to_string(), what));
    }

    /// Looks into a folder, in the order of names; hidden ones and links to folders are passed over.
    fn folder(&mut self, path: &Path, depth: usize) {
        if depth > MOST_DEPTH {
            return self.fail("file/too-large", path, &format!("folders more than {MOST_DEPTH} deep"));
        }
        let list = std::fs::read_dir(path).and_then(|entries| entries.collect::<io::Result<Vec<_>>>());
        let mut entries = match list {
            Ok(entries) => entries,
            Err(error) => return self.fail("file/unreadable", path, &error.to_string()),
        };
        entries.sort_by_key(std::fs::DirEntry::file_name);
        for entry in entries {
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                continue;
            }
            let path = entry.path();
            let named = path.extension().and_then(|e| e.to_str()).is_some_and(|e| ENDINGS.contains(&e));
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => self.folder(&path, depth + 1),
                Ok(kind) if named && (kind.is_file() || kind.is_symlink() && path.is_file()) => {
                    self.file(path)
                }
                Ok(_) => {}
                Err(error) => self.fail("file/unreadable", &path, &error.to_string()),
            }
        }
    }
}

/// The text of a file, or of standard input where it is called `-`.
pub(super) fn read(path: &Path) -> Result<String, Box<Finding>> {
    let name = path.display().to_string();
    let bytes = if name == "-" { take(io::stdin().lock()) } else { std::fs::File::open(path).and_then(take) };
    let wrong = |rule, what: String| Box::new(Finding::of_file(Level::Error, rule, &name, what));
    let bytes = bytes.map_err(|error| wrong("file/unreadable", error.to_string()))?;
    if bytes.len() as u64 > MOST_BYTES {
        return Err(wrong("file/too-large", format!("more than {MOST_BYTES} bytes")));
    }
    // A file that is no text and names no class is none of ours.
    String::from_utf8(bytes).or_else(|error| {
        if error.as_bytes().windows(KIND.len()).any(|window| window == KIND) {
            let at = error.utf8_error().valid_up_to();
            Err(wrong("file/yaml", format!("not UTF-8 at byte {at}; save the file as UTF-8")))
        } else {
            Ok(String::new())
        }
    })
}

const KIND: &[u8] = b"SecretProviderClass";

fn take(source: impl io::Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    source.take(MOST_BYTES + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_walked_in_order_without_hidden_ones_and_loops() {
        let root = tempfile::tempdir().unwrap();
        for name in ["b/x.yml", "a.yaml", "c.txt", ".git/y.yaml", "b/z.json"] {
            let path = root.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        std::os::unix::fs::symlink(root.path(), root.path().join("b/loop")).unwrap();
        let (files, findings) = files(&[root.path().to_owned()]);
        let names: Vec<_> =
            files.iter().map(|p| p.strip_prefix(root.path()).unwrap().display().to_string()).collect();
        assert_eq!(names, ["a.yaml", "b/x.yml", "b/z.json"]);
        assert!(findings.is_empty());
    }

    #[test]
    fn text_in_another_alphabet_is_said_only_of_classes() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("x.yaml");
        std::fs::write(&file, b"a: \xff").unwrap();
        assert_eq!(read(&file).unwrap(), "");
        std::fs::write(&file, b"kind: SecretProviderClass # \xff").unwrap();
        assert_eq!(read(&file).unwrap_err().rule, "file/yaml");
        assert_eq!(read(&root.path().join("none.yaml")).unwrap_err().rule, "file/unreadable");
    }
}

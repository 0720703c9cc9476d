//! Disks as distributions lay them out, made by `mke2fs` and `sfdisk` without root rights.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileExt, symlink};
use std::process::{Command, Stdio};

const MIB: u64 = 1 << 20;

/// GPT types.
pub const ROOT: &str = "4f68bce3-e8cd-4db1-96e7-fbcaf984b709";
pub const LINUX: &str = "0fc63daf-8483-4772-8e79-3d69d8477de4";
pub const XBOOTLDR: &str = "bc13c2ff-59e6-4262-a352-b275fd6f7172";
pub const ESP: &str = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b";

/// UUIDs of the file systems that [`filesystem`] makes, by its number, and of partitions.
pub fn uuid(number: u32) -> String {
    format!("{number:08x}-0000-4000-8000-000000000000")
}

/// A folder that becomes a file system.
pub struct Tree {
    pub dir: tempfile::TempDir,
}

impl Tree {
    pub fn new() -> Self {
        Tree {
            dir: tempfile::tempdir().expect("a temporary directory"),
        }
    }

    /// A root: it has `/etc`.
    pub fn root() -> Self {
        Tree::new().with("etc/hostname", "guest\n")
    }

    pub fn with(self, path: &str, contents: &str) -> Self {
        let path = self.dir.path().join(path);
        fs::create_dir_all(path.parent().expect("parent")).expect("folder");
        fs::write(path, contents).expect("file");
        self
    }

    pub fn with_link(self, path: &str, target: &str) -> Self {
        let path = self.dir.path().join(path);
        fs::create_dir_all(path.parent().expect("parent")).expect("folder");
        symlink(target, path).expect("link");
        self
    }
}

/// Makes a file system of this folder's files, with these options of `mke2fs`.
pub fn filesystem(tree: &Tree, number: u32, size_mib: u64, options: &[&str]) -> Vec<u8> {
    let image = tempfile::NamedTempFile::new().expect("image");
    image.as_file().set_len(size_mib * MIB).expect("size");
    let mut mke2fs = Command::new("mke2fs");
    if !options.contains(&"-t") {
        mke2fs.args(["-t", "ext4"]);
    }
    mke2fs.args(["-q", "-F", "-U", &uuid(number), "-d"]);
    run(mke2fs.arg(tree.dir.path()).args(options).arg(image.path()));
    fs::read(image.path()).expect("image")
}

/// Puts partitions into a table of this kind (`gpt`, `dos`), each of its type and contents.
pub fn disk(table: &str, partitions: &[(&str, &[u8])]) -> Vec<u8> {
    let mut script = format!("label: {table}\nlabel-id: {}\n", label_id(table));
    let mut start = MIB;
    let mut starts = Vec::new();
    for (index, (kind, contents)) in partitions.iter().enumerate() {
        let size = (contents.len() as u64).next_multiple_of(MIB);
        script += &format!("start={}, size={}, type={kind}", start / 512, size / 512);
        if table == "gpt" {
            script += &format!(", uuid={}", uuid(100 + index as u32 + 1));
        }
        script.push('\n');
        starts.push(start);
        start += size;
    }
    let image = tempfile::NamedTempFile::new().expect("image");
    image.as_file().set_len(start + MIB).expect("size");
    let mut sfdisk = Command::new("sfdisk")
        .args(["-q", "--no-reread", "--no-tell-kernel"])
        .arg(image.path())
        .stdin(Stdio::piped())
        .spawn()
        .expect("sfdisk");
    let mut stdin = sfdisk.stdin.take().expect("stdin");
    stdin.write_all(script.as_bytes()).expect("script");
    drop(stdin);
    assert!(sfdisk.wait().expect("sfdisk").success(), "{script}");
    for (start, (_, contents)) in starts.iter().zip(partitions) {
        image
            .as_file()
            .write_all_at(contents, *start)
            .expect("contents");
    }
    fs::read(image.path()).expect("image")
}

fn label_id(table: &str) -> String {
    match table {
        "gpt" => uuid(99),
        _ => "0x1234abcd".to_owned(),
    }
}

fn run(command: &mut Command) {
    let output = command.output().expect("a program of e2fsprogs");
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

//! Records on disk: a folder for each flow log, with files of lines. A file is named by the window
//! that it begins with.
//!
//! What a window adds is followed by a line `# WINDOW`. Without it, it is not there: readers do not
//! see it, and the next writer takes it away. So a window is written once, however often it is
//! tried.

use std::{
    collections::{BTreeMap, VecDeque},
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use super::record::Record;

/// How much is kept, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// A file that is longer gets nothing more.
    pub file: u64,
    /// Of one flow log, but for the file that is written to.
    pub log: u64,
    /// Of all of them.
    pub total: u64,
}

/// 64 MiB of each flow log, 2 GiB of all.
pub const BOUNDS: Bounds = Bounds {
    file: 4 << 20,
    log: 60 << 20,
    total: 2 << 30,
};

/// How many windows back it is known whether they were written.
const REMEMBERED: usize = 64;

/// The records of all flow logs.
#[derive(Debug)]
pub struct Files {
    dir: PathBuf,
    bounds: Bounds,
    /// Where writing goes on, by flow log.
    ends: Mutex<BTreeMap<String, End>>,
}

#[derive(Clone, Debug)]
struct End {
    file: u64,
    len: u64,
    windows: VecDeque<u64>,
}

/// Where a reader is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    file: u64,
    offset: u64,
}

fn name(file: u64) -> String {
    format!("{file:020}.log")
}

impl Files {
    pub fn new(dir: PathBuf, bounds: Bounds) -> Self {
        Self {
            dir,
            bounds,
            ends: Mutex::default(),
        }
    }

    /// The files of a flow log, in order, with their lengths.
    fn files(&self, log: &str) -> io::Result<BTreeMap<u64, u64>> {
        list(&self.dir.join(log))
    }

    /// Adds what was counted in a window. `false`: it was there already. The records are durable
    /// when this returns.
    ///
    /// # Errors
    /// Nothing was added.
    pub fn append(&self, log: &str, window: u64, records: &[Record]) -> io::Result<bool> {
        let mut ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        let mut end = match ends.remove(log) {
            Some(end) => end,
            None => self.find_end(log)?,
        };
        if end.windows.contains(&window) {
            ends.insert(log.to_owned(), end);
            return Ok(false);
        }
        if end.file == 0 || end.len >= self.bounds.file {
            // Names are in the order of time also when the clock is not.
            end.file = window.max(end.file + 1);
            end.len = 0;
        }
        let mut text = String::new();
        for record in records {
            text.push_str(&record.line());
            text.push('\n');
        }
        text.push_str(&format!("# {window}\n"));
        let begun = end.len == 0;
        // Whatever goes wrong from here on, the end is looked for again.
        self.write(log, &end, text.as_bytes())?;
        end.len += text.len() as u64;
        end.windows.push_back(window);
        if end.windows.len() > REMEMBERED {
            end.windows.pop_front();
        }
        ends.insert(log.to_owned(), end);
        drop(ends);
        if begun && let Err(error) = self.prune(log) {
            tracing::warn!("old records stay: {error}");
        }
        Ok(true)
    }

    fn write(&self, log: &str, end: &End, text: &[u8]) -> io::Result<()> {
        let dir = self.dir.join(log);
        if end.len == 0 {
            DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        }
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(dir.join(name(end.file)))?;
        // Away with what no line says is whole.
        file.set_len(end.len)?;
        file.seek(SeekFrom::Start(end.len))?;
        file.write_all(text)?;
        file.sync_data()?;
        if end.len == 0 {
            for dir in [&dir, &self.dir] {
                File::open(dir)?.sync_all()?;
            }
        }
        Ok(())
    }

    fn find_end(&self, log: &str) -> io::Result<End> {
        let files = self.files(log)?;
        let mut end = End {
            file: 0,
            len: 0,
            windows: VecDeque::new(),
        };
        // The last one may have been begun just now; what was written before is in the one
        // before it.
        let last: Vec<u64> = files.keys().rev().take(2).rev().copied().collect();
        for file in last {
            let text = fs::read(self.dir.join(log).join(name(file)))?;
            let whole = committed(&text);
            end.file = file;
            end.len = whole.len() as u64;
            let lines = whole.split(|byte| *byte == b'\n');
            end.windows.extend(lines.filter_map(marker));
        }
        while end.windows.len() > REMEMBERED {
            end.windows.pop_front();
        }
        Ok(end)
    }

    /// Removes the oldest files of a flow log that has too much, and of all of them together.
    fn prune(&self, log: &str) -> io::Result<()> {
        let mut files = self.files(log)?;
        let mut sum: u64 = files.values().sum();
        while sum > self.bounds.log + self.bounds.file && files.len() > 1 {
            let Some((oldest, len)) = files.pop_first() else {
                break;
            };
            fs::remove_file(self.dir.join(log).join(name(oldest)))?;
            sum -= len;
        }
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            let mut files = list(&path)?;
            // Of each, the one that is written to stays.
            let last = files.pop_last();
            all.extend(
                files
                    .into_iter()
                    .map(|(file, len)| (file, len, path.clone())),
            );
            all.extend(last.map(|(_, len)| (u64::MAX, len, PathBuf::new())));
        }
        let mut total: u64 = all.iter().map(|(_, len, _)| len).sum();
        all.sort();
        for (file, len, path) in all {
            if total <= self.bounds.total || file == u64::MAX {
                break;
            }
            fs::remove_file(path.join(name(file)))?;
            total -= len;
        }
        Ok(())
    }

    /// Removes the records of a flow log.
    ///
    /// # Errors
    /// Some may be left.
    pub fn remove(&self, log: &str) -> io::Result<()> {
        let mut ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        ends.remove(log);
        match fs::remove_dir_all(self.dir.join(log)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done,
        }
    }

    /// Removes what is of no flow log that `is_there`.
    ///
    /// # Errors
    /// Some may be left.
    pub fn sweep(&self, is_there: impl Fn(&str) -> bool) -> io::Result<()> {
        let entries = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        for entry in entries {
            let name = entry?.file_name();
            let Some(log) = name.to_str() else { continue };
            if log.starts_with("fl-") && !is_there(log) {
                self.remove(log)?;
            }
        }
        Ok(())
    }

    /// Before the records that end after `time`, in milliseconds since 1970, and few others.
    ///
    /// # Errors
    /// The files can't be read.
    pub fn seek(&self, log: &str, time: u64) -> io::Result<Position> {
        // What is in a file ended when the next one's first window began.
        let files = self.files(log)?;
        let next = files.keys().skip(1);
        let file = files.keys().zip(next).find(|(_, next)| **next > time);
        let file = file.map(|(file, _)| file).or(files.keys().next_back());
        let file = file.copied().unwrap_or_default();
        Ok(Position { file, offset: 0 })
    }

    /// The records behind a position, up to the end of a file, which it is moved behind. Empty:
    /// there is nothing more by now. What was removed meanwhile is jumped over.
    ///
    /// # Errors
    /// The files can't be read.
    pub fn read(&self, log: &str, position: &mut Position) -> io::Result<Vec<Record>> {
        // Listed before it is read: a file that is not the last one is whole.
        let files = self.files(log)?;
        for (&file, _) in files.range(position.file..) {
            if file != position.file {
                *position = Position { file, offset: 0 };
            }
            let text = match read_from(&self.dir.join(log).join(name(file)), position.offset) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                text => text?,
            };
            let whole = committed(&text);
            position.offset += whole.len() as u64;
            let lines = String::from_utf8_lossy(whole);
            let records: Vec<Record> = lines.lines().filter_map(Record::parse).collect();
            if !records.is_empty() {
                return Ok(records);
            }
        }
        Ok(Vec::new())
    }
}

fn list(dir: &Path) -> io::Result<BTreeMap<u64, u64>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        entries => entries?,
    };
    let mut files = BTreeMap::new();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let number = name.to_str().and_then(|it| it.strip_suffix(".log"));
        if let Some(number) = number.and_then(|it| it.parse().ok()) {
            files.insert(number, entry.metadata()?.len());
        }
    }
    Ok(files)
}

fn read_from(path: &Path, offset: u64) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    if file.metadata()?.len() <= offset {
        return Ok(Vec::new());
    }
    let mut text = Vec::new();
    file.seek(SeekFrom::Start(offset))?;
    file.read_to_end(&mut text)?;
    Ok(text)
}

/// Up to and with the last line that ends a window.
fn committed(text: &[u8]) -> &[u8] {
    let mut end = text.len();
    while let Some(newline) = text[..end].iter().rposition(|byte| *byte == b'\n') {
        let start = text[..newline].iter().rposition(|byte| *byte == b'\n');
        let start = start.map_or(0, |it| it + 1);
        if marker(&text[start..newline]).is_some() {
            return &text[..=newline];
        }
        end = newline;
    }
    &[]
}

fn marker(line: &[u8]) -> Option<u64> {
    std::str::from_utf8(line.strip_prefix(b"# ")?)
        .ok()?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::flow_logs::record::Content;

    const LOG: &str = "fl-0123456789abcdef0";

    fn record(start: i64) -> Record {
        Record {
            account: "local".to_owned(),
            interface: "eni-0123456789abcdef0".to_owned(),
            start,
            end: start + 1,
            content: Content::Nothing,
        }
    }

    fn starts(files: &Files, position: &mut Position) -> Vec<i64> {
        let mut all = Vec::new();
        loop {
            let records = files.read(LOG, position).expect("read");
            if records.is_empty() {
                return all;
            }
            all.extend(records.iter().map(|it| it.start));
        }
    }

    fn size(dir: &Path) -> u64 {
        list(dir).expect("listed").values().sum()
    }

    #[test]
    fn a_window_is_written_once_and_a_torn_one_again() {
        let dir = tempfile::tempdir().expect("tempdir");
        let files = || Files::new(dir.path().join("logs"), BOUNDS);
        let first = files();
        assert!(
            first
                .append(LOG, 1000, &[record(1), record(2)])
                .expect("new")
        );
        assert!(!first.append(LOG, 1000, &[record(1)]).expect("known"));
        assert!(
            !files()
                .append(LOG, 1000, &[record(1)])
                .expect("another agent")
        );
        let path = dir.path().join("logs").join(LOG).join(name(1000));
        let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(path.parent().expect("folder")), 0o700);
        let mut whole = fs::read(&path).expect("there");
        let second = files();
        assert!(
            second
                .append(LOG, 2000, &[record(3), record(4)])
                .expect("new")
        );
        let both = fs::read(&path).expect("there");
        // Cut off at any point, the second window is not there, and is written again.
        for cut in whole.len()..both.len() {
            fs::write(&path, &both[..cut]).expect("cut");
            let next = files();
            assert_eq!(starts(&next, &mut Position::default()), [1, 2], "{cut}");
            assert!(
                next.append(LOG, 2000, &[record(3), record(4)])
                    .expect("again")
            );
            assert_eq!(fs::read(&path).expect("there"), both, "{cut}");
        }
        // Not even the first one.
        whole.truncate(10);
        fs::write(&path, &whole).expect("cut");
        assert!(starts(&files(), &mut Position::default()).is_empty());
        files().remove(LOG).expect("removed");
        files().remove(LOG).expect("twice");
        assert!(starts(&files(), &mut Position::default()).is_empty());
    }

    #[test]
    fn the_oldest_records_make_room_and_readers_go_on_behind_them() {
        let dir = tempfile::tempdir().expect("tempdir");
        let bounds = Bounds {
            file: 500,
            log: 2000,
            total: 100_000,
        };
        let files = Files::new(dir.path().to_owned(), bounds);
        let mut position = Position::default();
        let mut slow = Position::default();
        for window in 1..=100 {
            files
                .append(LOG, window, &[record(window as i64)])
                .expect("written");
            assert_eq!(starts(&files, &mut position), [window as i64]);
            if window == 3 {
                assert_eq!(starts(&files, &mut slow), [1, 2, 3]);
            }
            assert!(size(&dir.path().join(LOG)) <= bounds.log + 2 * bounds.file);
        }
        let kept = starts(&files, &mut Position::default());
        assert!(kept.len() > 10 && kept.len() < 50, "{kept:?}");
        assert!(kept.is_sorted() && kept.ends_with(&[100]));
        assert_eq!(starts(&files, &mut slow), kept);
        let mut late = files.seek(LOG, 95).expect("found");
        let late = starts(&files, &mut late);
        assert!(late.len() < 15 && late.contains(&96), "{late:?}");
        assert!(starts(&files, &mut files.seek(LOG, 1000).expect("found")).contains(&100));
        // All together: others' oldest go, too, but nobody's last.
        let bounds = Bounds {
            total: 1500,
            ..bounds
        };
        let files = Files::new(dir.path().to_owned(), bounds);
        for window in 101..=120 {
            let log = "fl-0123456789abcdef1";
            files
                .append(log, window, &[record(window as i64)])
                .expect("written");
        }
        assert!(size(&dir.path().join(LOG)) <= 600);
        assert!(starts(&files, &mut Position::default()).contains(&100));
        files.sweep(|log| log == LOG).expect("swept");
        assert!(!dir.path().join("fl-0123456789abcdef1").exists());
        assert!(dir.path().join(LOG).exists());
    }

    #[test]
    fn what_is_not_a_line_of_ours_ends_nothing() {
        assert_eq!(committed(b""), b"");
        assert_eq!(committed(b"# 1"), b"");
        assert_eq!(committed(b"a\n# 1\nb\n# x\n# 2"), b"a\n# 1\n");
        assert_eq!(committed(b"\n\n# 7\n"), b"\n\n# 7\n");
    }
}

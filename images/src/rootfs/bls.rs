//! Boot Loader Specification entries, "type #1" (UAPI Group): `loader/entries/*.conf`.

use super::version;
use std::cmp::Ordering;

/// One entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Entry {
    /// The file's name without `.conf` and without the counter of tries.
    pub id: String,
    pub linux: String,
    pub initrds: Vec<String>,
    pub options: String,
    sort_key: String,
    machine_id: String,
    version: String,
    architecture: String,
    /// The boot loader has tried it too often.
    bad: bool,
}

/// Reads an entry; `None` when it names no kernel for x86-64.
pub(super) fn parse(file_name: &str, text: &str) -> Option<Entry> {
    let (id, bad) = id_and_tries(file_name.strip_suffix(".conf")?);
    let mut entry = Entry {
        id,
        bad,
        ..Entry::default()
    };
    for line in text.lines().map(str::trim) {
        if line.starts_with('#') {
            continue;
        }
        let Some((key, value)) = line.split_once([' ', '\t']) else {
            continue;
        };
        let value = value.trim();
        match key {
            "linux" => entry.linux = value.to_owned(),
            // Several to a line: what Fedora writes, with a variable of grub's among them.
            "initrd" => entry.initrds.extend(
                value
                    .split_whitespace()
                    .filter(|path| !path.starts_with('$'))
                    .map(str::to_owned),
            ),
            "options" => {
                if !entry.options.is_empty() {
                    entry.options.push(' ');
                }
                entry.options.push_str(value);
            }
            "sort-key" => entry.sort_key = value.to_owned(),
            "machine-id" => entry.machine_id = value.to_owned(),
            "version" => entry.version = value.to_owned(),
            "architecture" => entry.architecture = value.to_ascii_lowercase(),
            _ => {}
        }
    }
    let ours = matches!(
        entry.architecture.as_str(),
        "" | "x64" | "x86-64" | "x86_64"
    );
    (ours && !entry.linux.is_empty()).then_some(entry)
}

/// Sorts entries, the one to boot first: `default`'s, if there is such an entry, then by the
/// specification's section "Sorting".
pub(super) fn sort(entries: &mut [Entry], default: Option<&str>) {
    let is_default = |entry: &Entry| default == Some(entry.id.as_str());
    entries.sort_by(|a, b| {
        is_default(b)
            .cmp(&is_default(a))
            .then_with(|| preference(a, b))
    });
}

fn preference(a: &Entry, b: &Entry) -> Ordering {
    let by_key = match (a.sort_key.is_empty(), b.sort_key.is_empty()) {
        (false, false) => a
            .sort_key
            .cmp(&b.sort_key)
            .then_with(|| a.machine_id.cmp(&b.machine_id))
            .then_with(|| version::compare(&b.version, &a.version)),
        (a_without, b_without) => a_without.cmp(&b_without),
    };
    a.bad
        .cmp(&b.bad)
        .then(by_key)
        .then_with(|| version::compare(&b.id, &a.id))
}

/// Takes `+LEFT` or `+LEFT-DONE` off a name (section "Boot counting").
fn id_and_tries(name: &str) -> (String, bool) {
    let counted = name.rsplit_once('+').and_then(|(id, tries)| {
        let (left, done) = tries.split_once('-').unwrap_or((tries, "0"));
        let left: u32 = left.parse().ok()?;
        done.parse::<u32>().ok()?;
        Some((id.to_owned(), left == 0))
    });
    counted.unwrap_or_else(|| (name.to_owned(), false))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(mut entries: Vec<Entry>, default: Option<&str>) -> Vec<String> {
        sort(&mut entries, default);
        entries.into_iter().map(|entry| entry.id).collect()
    }

    fn entry(name: &str, more: &str) -> Entry {
        parse(&format!("{name}.conf"), &format!("linux /vmlinuz\n{more}")).expect("an entry")
    }

    #[test]
    fn an_entry_is_read_as_fedora_writes_it() {
        let text = "title Fedora Linux (6.11.4-301.fc41.x86_64) 41\nversion 6.11.4\n# comment\n\
            linux /vmlinuz-6.11.4\ninitrd /initramfs-6.11.4.img $tuned_initrd\n\
            options root=UUID=1 ro\noptions\tconsole=ttyS0\ngrub_class fedora\n";
        let entry = parse("0a-6.11.4+3-1.conf", text).expect("an entry");
        assert_eq!(entry.id, "0a-6.11.4");
        assert_eq!(entry.linux, "/vmlinuz-6.11.4");
        assert_eq!(entry.initrds, ["/initramfs-6.11.4.img"]);
        assert_eq!(entry.options, "root=UUID=1 ro console=ttyS0");
    }

    #[test]
    fn entries_without_a_kernel_for_us_are_none() {
        for text in ["", "efi /a.efi", "linux", "linux /a\narchitecture aa64"] {
            assert_eq!(parse("a.conf", text), None, "{text:?}");
        }
        assert_eq!(parse("a.conf.bak", "linux /a"), None);
    }

    #[test]
    fn the_newest_is_first_and_rescue_entries_are_last() {
        let entries = vec![
            entry("m-0-rescue", ""),
            entry("m-6.1.0-9", ""),
            entry("m-6.1.0-10", ""),
        ];
        let sorted = ids(entries.clone(), None);
        assert_eq!(sorted, ["m-6.1.0-10", "m-6.1.0-9", "m-0-rescue"]);
        // What grub was told to boot goes before.
        assert_eq!(ids(entries.clone(), Some("m-6.1.0-9"))[0], "m-6.1.0-9");
        assert_eq!(ids(entries, Some("gone"))[0], "m-6.1.0-10");
    }

    #[test]
    fn sort_keys_go_before_names_and_failed_entries_behind_everything() {
        let entries = vec![
            entry("z", ""),
            entry("b", "sort-key debian\nmachine-id 1\nversion 6.1"),
            entry("c", "sort-key debian\nmachine-id 1\nversion 6.10"),
            entry("d", "sort-key debian\nmachine-id 0\nversion 5"),
            entry("e+0-3", "sort-key aaa\nversion 9"),
        ];
        assert_eq!(ids(entries, None), ["d", "c", "b", "z", "e"]);
    }
}

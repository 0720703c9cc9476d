//! What can be read of grub's files without running its scripts.

/// A menu entry of a `grub.cfg`: its first kernel, and the initrds that belong to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct MenuEntry {
    pub title: String,
    id: String,
    pub linux: String,
    pub initrds: Vec<String>,
    pub options: String,
}

/// The menu entries, that of the `saved` id, title or number first. Submenus hold older kernels:
/// theirs come after those before them, as they stand in the file. Entries whose kernel's path
/// holds a variable that the file does not plainly set are left out.
pub(super) fn menu(text: &str, saved: Option<&str>) -> Vec<MenuEntry> {
    let mut variables: Vec<(String, String)> = Vec::new();
    let mut entries: Vec<MenuEntry> = Vec::new();
    let mut open: Option<MenuEntry> = None;
    let mut first_kernel_is_over = false;
    for line in text.lines() {
        let words = words(line);
        let Some(command) = words.first() else {
            continue;
        };
        match (command.as_str(), &mut open) {
            ("menuentry", _) => {
                entries.extend(open.take());
                first_kernel_is_over = false;
                let id = words
                    .iter()
                    .position(|word| word == "--id" || word == "$menuentry_id_option");
                open = Some(MenuEntry {
                    title: words.get(1).cloned().unwrap_or_default(),
                    id: id
                        .and_then(|at| words.get(at + 1))
                        .cloned()
                        .unwrap_or_default(),
                    ..MenuEntry::default()
                });
            }
            ("set", _) => {
                let assignment = words.get(1).and_then(|word| word.split_once('='));
                if let Some((name, value)) = assignment
                    && let Some(value) = expanded(value, &variables)
                {
                    variables.push((name.to_owned(), value));
                }
            }
            ("linux" | "linux16" | "linuxefi", Some(entry)) => {
                // A second kernel is what the script boots when the first one failed.
                first_kernel_is_over |= !entry.linux.is_empty();
                if let Some(path) = words.get(1).and_then(|path| expanded(path, &variables))
                    && !first_kernel_is_over
                {
                    entry.linux = without_device(&path);
                    let options = words[2..]
                        .iter()
                        .filter_map(|word| expanded(word, &variables));
                    entry.options = options
                        .filter(|word| !word.is_empty())
                        .collect::<Vec<_>>()
                        .join(" ");
                }
            }
            ("initrd" | "initrd16" | "initrdefi", Some(entry)) if !first_kernel_is_over => {
                let paths = words[1..]
                    .iter()
                    .filter_map(|word| expanded(word, &variables));
                entry
                    .initrds
                    .extend(paths.map(|path| without_device(&path)));
            }
            _ => {}
        }
    }
    entries.extend(open);
    if let Some(saved) = saved {
        // `submenu>entry` names the entry last.
        let name = saved.rsplit('>').next().unwrap_or(saved);
        let at = entries
            .iter()
            .position(|entry| entry.id == name || entry.title == name)
            .or_else(|| saved.parse().ok().filter(|at| *at < entries.len()));
        if let Some(at) = at {
            entries[..=at].rotate_right(1);
        }
    }
    entries.retain(|entry| !entry.linux.is_empty());
    entries
}

/// The default entry that a `grub.cfg` sets to a plain value.
pub(super) fn default(text: &str) -> Option<String> {
    text.lines()
        .map(words)
        .filter(|words| words.first().is_some_and(|word| word == "set"))
        .filter_map(|words| Some(words.get(1)?.strip_prefix("default=")?.to_owned()))
        .find(|value| !value.is_empty() && !value.contains('$'))
}

/// A variable of a `grubenv` block.
pub(super) fn environment(text: &str, name: &str) -> Option<String> {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once('='))
        .find(|(key, value)| *key == name && !value.is_empty())
        .map(|(_, value)| value.replace("\\\\", "\\"))
}

/// Replaces grub's variables in the options of a boot loader entry by what `value` knows of them;
/// those that it does not know are empty, as they are to grub.
pub(super) fn expand_options(options: &str, value: impl Fn(&str) -> Option<String>) -> String {
    let words = options.split_whitespace().map(|word| {
        let name = word
            .strip_prefix('$')
            .map(|name| name.trim_start_matches('{').trim_end_matches('}'));
        match name {
            Some(name) => value(name).unwrap_or_default(),
            None => word.to_owned(),
        }
    });
    words
        .filter(|word| !word.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}

/// The last value that a shell file such as `/etc/default/grub` gives to a variable, whose value
/// before was `before`. Only plain assignments count.
pub(super) fn assigned(text: &str, name: &str, before: &str) -> String {
    let mut current = before.to_owned();
    for line in text.lines() {
        let line = line.trim_start();
        let line = line.strip_prefix("export ").unwrap_or(line);
        let Some(rest) = line.strip_prefix(name) else {
            continue;
        };
        let (appends, value) = match (rest.strip_prefix("+="), rest.strip_prefix('=')) {
            (Some(value), _) => (true, value),
            (None, Some(value)) => (false, value),
            (None, None) => continue,
        };
        let value = words(value).into_iter().next().unwrap_or_default();
        let value = value
            .replace(&format!("${{{name}}}"), &current)
            .replace(&format!("${name}"), &current);
        if value.contains('$') || value.contains('`') {
            continue;
        }
        if appends {
            current.push_str(&value);
        } else {
            current = value;
        }
    }
    current
}

/// Splits a line as a shell does: quotes, backslashes, comments. `{`, `}` and `;` that stand
/// alone are words.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote: Option<char> = None;
    let mut characters = line.chars();
    while let Some(c) = characters.next() {
        match (quote, c) {
            (Some('\''), '\'') | (Some('"'), '"') => quote = None,
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None | Some('"'), '\\') => {
                word.get_or_insert_default().extend(characters.next());
            }
            (None, '#') if word.is_none() => break,
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

/// `text` with its variables replaced; `None` when one is not known. A word that is nothing but
/// an unknown variable is empty, as it is to grub.
fn expanded(text: &str, variables: &[(String, String)]) -> Option<String> {
    let mut result = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        result.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let (name, after) = match rest.strip_prefix('{') {
            Some(braced) => braced.split_once('}')?,
            None => {
                let end = rest
                    .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
                    .unwrap_or(rest.len());
                rest.split_at(end)
            }
        };
        let known = variables.iter().rev().find(|(known, _)| known == name);
        match known {
            Some((_, value)) => result.push_str(value),
            None if result.is_empty() && after.is_empty() => return Some(String::new()),
            // `($root)/boot/vmlinuz`: the device is known without.
            None if result == "(" && after.starts_with(')') => {}
            None => return None,
        }
        rest = after;
        // A variable's value may hold no further variable, so that this ends; but it may be long.
        if result.len() > 1 << 16 {
            return None;
        }
    }
    result.push_str(rest);
    Some(result)
}

/// `(hd0,gpt1)/vmlinuz` is `/vmlinuz`.
fn without_device(path: &str) -> String {
    match path.strip_prefix('(').and_then(|rest| rest.split_once(')')) {
        Some((_, path)) => path.to_owned(),
        None => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEBIAN: &str = r#"
set default="0"
if [ x"${feature_menuentry_id}" = xy ]; then
  menuentry_id_option="--id"
fi
menuentry 'Debian GNU/Linux' --class debian $menuentry_id_option 'gnulinux-simple-1' {
	insmod ext2
	search --no-floppy --fs-uuid --set=root 1
	linux	/boot/vmlinuz-6.1.0-25-amd64 root=UUID=1 ro  console=tty0 console=ttyS0,115200 $vt_handoff
	initrd	/boot/initrd.img-6.1.0-25-amd64
}
submenu 'Advanced options' $menuentry_id_option 'gnulinux-advanced-1' {
	menuentry 'Debian, with Linux 6.1.0-24' --class debian $menuentry_id_option 'gnulinux-6.1.0-24' {
		linux	/boot/vmlinuz-6.1.0-24-amd64 root=UUID=1 ro
		initrd	/boot/initrd.img-6.1.0-24-amd64
	}
}
"#;

    #[test]
    fn the_first_entry_or_the_saved_one_is_booted() {
        let entries = menu(DEBIAN, None);
        assert_eq!(entries.len(), 2);
        assert_eq!(entries[0].linux, "/boot/vmlinuz-6.1.0-25-amd64");
        assert_eq!(entries[0].initrds, ["/boot/initrd.img-6.1.0-25-amd64"]);
        assert_eq!(
            entries[0].options,
            "root=UUID=1 ro console=tty0 console=ttyS0,115200"
        );
        let older = "gnulinux-advanced-1>gnulinux-6.1.0-24";
        assert_eq!(
            menu(DEBIAN, Some(older))[0].linux,
            "/boot/vmlinuz-6.1.0-24-amd64"
        );
        assert_eq!(
            menu(DEBIAN, Some("1"))[0].title,
            "Debian, with Linux 6.1.0-24"
        );
        assert_eq!(menu(DEBIAN, Some("99"))[0].title, "Debian GNU/Linux");
        assert_eq!(default(DEBIAN).as_deref(), Some("0"));
    }

    #[test]
    fn of_two_kernels_in_an_entry_the_first_one_counts_with_its_own_initrd() {
        let ubuntu = r#"
menuentry "Ubuntu" {
	if [ "${initrdfail}" = 1 ]; then
	  linux	/vmlinuz-6.8 root=LABEL=cloudimg-rootfs ro console=ttyS0
	  initrd	/initrd.img-6.8
	else
	  linux	/vmlinuz-6.8 root=PARTUUID=1 ro panic=-1
	  initrd	/microcode.cpio
	fi
}"#;
        let entries = menu(ubuntu, None);
        assert_eq!(entries.len(), 1);
        assert_eq!(entries[0].initrds, ["/initrd.img-6.8"]);
        assert!(entries[0].options.contains("LABEL="));
    }

    #[test]
    fn variables_that_the_file_sets_are_put_in_and_unknown_paths_are_left_out() {
        let text = "set kernel=/vmlinuz\nmenuentry a {\nlinux ($root)/boot$kernel quiet\n}\n\
            menuentry b {\nlinux /boot/$unknown/vmlinuz\n}\nmenuentry c {\nlinux (hd0,gpt1)/x ro\n}";
        let entries = menu(text, None);
        let kernels: Vec<_> = entries.iter().map(|entry| entry.linux.as_str()).collect();
        assert_eq!(kernels, ["/boot/vmlinuz", "/x"]);
    }

    #[test]
    fn a_variable_that_names_itself_does_not_grow_without_end() {
        let text = "set a=$a$a$a$a\nset b=xxxxxxxxxxxxxxxx\n".to_owned()
            + &"set b=$b$b\n".repeat(100)
            + "menuentry a {\nlinux /v$b\n}\nmenuentry b {\nlinux /w\n}";
        assert!(menu(&text, None).iter().any(|entry| entry.linux == "/w"));
    }

    #[test]
    fn the_environment_block_is_read() {
        let text =
            "# GRUB Environment Block\nsaved_entry=abc-6.1\nkernelopts=root=UUID=1 ro \n####";
        assert_eq!(environment(text, "saved_entry").as_deref(), Some("abc-6.1"));
        let options = expand_options("$kernelopts ${tuned_params} quiet", |name| {
            environment(text, name)
        });
        assert_eq!(options, "root=UUID=1 ro  quiet");
    }

    #[test]
    fn shell_assignments_are_read_in_order() {
        let text = "# GRUB_CMDLINE_LINUX=\"no\"\nGRUB_CMDLINE_LINUX=\"console=ttyS0 a\"\n\
            GRUB_CMDLINE_LINUX_DEFAULT='quiet'\nGRUB_CMDLINE_LINUX=\"$GRUB_CMDLINE_LINUX b\"\n\
            GRUB_CMDLINE_LINUX+=\" c\"\nGRUB_CMDLINE_LINUX=`date`\n";
        assert_eq!(
            assigned(text, "GRUB_CMDLINE_LINUX", ""),
            "console=ttyS0 a b c"
        );
        assert_eq!(assigned(text, "GRUB_CMDLINE_LINUX_DEFAULT", "x"), "quiet");
        assert_eq!(assigned("", "GRUB_CMDLINE_LINUX", "x"), "x");
    }
}

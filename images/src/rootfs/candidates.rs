//! What a file system says about how it wants to be booted, best first.

use super::error::FileError;
use super::layout::BootPlace;
use super::{bls, grub, kernels};

/// Largest text file that is read, in bytes.
pub(super) const MAX_TEXT: u64 = 1 << 20;

/// Most boot loader entries that are read.
const MAX_ENTRIES: usize = 200;

/// A kernel to boot, if its files are there.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub linux: String,
    pub initrds: Vec<String>,
    /// `None` when nothing says them beside the kernel.
    pub options: Option<String>,
    /// What named it, for people.
    pub named_by: String,
}

/// All candidates: boot loader entries, then those of a `grub.cfg`, then kernels by their names.
pub(super) fn of(place: &BootPlace) -> Result<Vec<Candidate>, FileError> {
    let grub_file = |name: &str| -> Result<Option<String>, FileError> {
        for folder in ["grub2", "grub"] {
            let path = place.path(&format!("{folder}/{name}"));
            if let Some(text) = place.fs.text(&path, MAX_TEXT)? {
                return Ok(Some(text));
            }
        }
        Ok(None)
    };
    let (environment, config) = (grub_file("grubenv")?, grub_file("grub.cfg")?);
    let environment = environment.unwrap_or_default();
    let saved = grub::environment(&environment, "saved_entry");
    let mut candidates = entries(place, &environment, saved.as_deref())?;
    if let Some(config) = config {
        let default = saved.or_else(|| grub::default(&config));
        let menu = grub::menu(&config, default.as_deref());
        candidates.extend(menu.into_iter().map(|entry| Candidate {
            named_by: format!("the entry {:?} of grub.cfg", entry.title),
            linux: entry.linux,
            initrds: entry.initrds,
            options: Some(entry.options),
        }));
    }
    candidates.extend(by_name(place)?);
    Ok(candidates)
}

fn entries(
    place: &BootPlace,
    environment: &str,
    saved: Option<&str>,
) -> Result<Vec<Candidate>, FileError> {
    let folder = place.path("loader/entries");
    let mut entries = Vec::new();
    let names = place.fs.names(&folder)?;
    for name in names
        .iter()
        .filter(|name| name.ends_with(".conf"))
        .take(MAX_ENTRIES)
    {
        if let Some(text) = place.fs.text(&format!("{folder}/{name}"), MAX_TEXT)? {
            entries.extend(bls::parse(name, &text));
        }
    }
    bls::sort(&mut entries, saved);
    let candidate = |entry: bls::Entry| Candidate {
        named_by: format!("the boot loader entry {}", entry.id),
        options: Some(grub::expand_options(&entry.options, |name| {
            grub::environment(environment, name)
        })),
        linux: entry.linux,
        initrds: entry.initrds,
    };
    Ok(entries.into_iter().map(candidate).collect())
}

fn by_name(place: &BootPlace) -> Result<Vec<Candidate>, FileError> {
    let folder = place.path("");
    let found = kernels::kernels(&place.fs.names(&folder)?);
    let mut candidates: Vec<_> = found
        .into_iter()
        .map(|kernel| Candidate {
            named_by: format!("the kernel's name {}", kernel.file),
            linux: place.path(&kernel.file),
            initrds: kernel
                .initrd
                .map(|name| place.path(&name))
                .into_iter()
                .collect(),
            options: None,
        })
        .collect();
    // Debian's links to the newest kernel, which point into /boot.
    if place.is_root() && place.fs.file("/vmlinuz")?.is_some() {
        let initrd = place
            .fs
            .file("/initrd.img")?
            .map(|_| "/initrd.img".to_owned());
        candidates.push(Candidate {
            named_by: "the link /vmlinuz".to_owned(),
            linux: "/vmlinuz".to_owned(),
            initrds: initrd.into_iter().collect(),
            options: None,
        });
    }
    Ok(candidates)
}

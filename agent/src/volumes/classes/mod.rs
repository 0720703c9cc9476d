//! Volume classes: how large a volume may be and what it may do in a second. The catalogue is a
//! data file built into the program; the operator's `volume-classes.json` in the state
//! directory, of the same form, adds classes and replaces those of the same name.
//!
//! - [`rule`]: a figure by a volume's size.
//! - [`choice`]: what a caller asks of a class, checked against it.

pub mod choice;
pub mod rule;

use std::{io, path::Path};

use hearth_vmm::devices::virtio::block::throttle::limits::{Burst, DiskLimits, Limit};
use serde::Deserialize;
use thiserror::Error;

use self::{choice::ClassChoice, rule::Rule};
use super::model::{GIB, MAX_SIZE_GIB};

/// What a volume gets when nothing is asked for.
pub const DEFAULT: &str = "gp3";

/// Bytes in a MiB.
const MIB: u64 = 1 << 20;

/// A kind of volume.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Class {
    pub name: String,
    /// What EC2 says it lies on; for people.
    pub medium: String,
    pub min_gib: u64,
    pub max_gib: u64,
    /// A longer operation counts as several; 0 counts any as one. In KiB.
    #[serde(default)]
    pub unit_kib: u64,
    /// Operations in sequence count together, up to the unit.
    #[serde(default)]
    pub merge: bool,
    /// Operations in a second; without it they are not limited.
    #[serde(default)]
    pub iops: Option<Rule>,
    /// MiB in a second; without it they are not limited.
    #[serde(default)]
    pub throughput_mib: Option<Rule>,
}

/// What a volume of a class may do in a second; 0 is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    pub iops: u32,
    /// Rounded.
    pub throughput_mib: u32,
}

/// All classes, in the order of the files.
#[derive(Clone, Debug)]
pub struct Classes(Vec<Class>);

/// What is wrong with a catalogue.
#[derive(Debug, Error)]
pub enum ClassesError {
    /// The file is there and can't be read.
    #[error("reading the volume classes: {0}")]
    Read(#[from] io::Error),
    /// Not JSON, or not this form.
    #[error("volume classes must be a list as in docs/volumes.md: {0}")]
    Parse(#[from] serde_json::Error),
    /// A class that no volume could have.
    #[error("volume class {name:?}: {problem}")]
    Class {
        /// Which.
        name: String,
        /// Why.
        problem: String,
    },
}

impl Classes {
    /// The built-in classes, with the operator's file over them, if there is one.
    pub fn load(operator: &Path) -> Result<Self, ClassesError> {
        let mut classes = Self(Vec::new());
        classes.add(include_str!("classes.json"))?;
        match std::fs::read_to_string(operator) {
            Ok(text) => classes.add(&text)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
        Ok(classes)
    }

    fn add(&mut self, text: &str) -> Result<(), ClassesError> {
        for new in serde_json::from_str::<Vec<Class>>(text)? {
            if let Some(problem) = new.problem() {
                let name = new.name;
                return Err(ClassesError::Class { name, problem });
            }
            match self.0.iter_mut().find(|class| class.name == new.name) {
                Some(class) => *class = new,
                None => self.0.push(new),
            }
        }
        Ok(())
    }

    /// Looks a name up.
    pub fn get(&self, name: &str) -> Option<&Class> {
        self.0.iter().find(|class| class.name == name)
    }

    /// All.
    pub fn all(&self) -> &[Class] {
        &self.0
    }

    /// What a volume may do in a second.
    pub fn figures(&self, choice: &ClassChoice, size_bytes: u64) -> Figures {
        let class = self.get(&choice.name);
        class.map_or_else(Figures::default, |class| class.figures(choice, size_bytes))
    }

    /// A volume's limits, as its VMM takes them. A class that the operator took away limits
    /// nothing.
    pub fn limits(
        &self,
        choice: &ClassChoice,
        size_bytes: u64,
        credits: Option<u64>,
    ) -> DiskLimits {
        match self.get(&choice.name) {
            Some(class) => class.limits(choice, size_bytes, credits),
            None => {
                tracing::warn!(class = choice.name, "no such volume class; not limited");
                DiskLimits::default()
            }
        }
    }

    /// The burst of a volume, if it has one: [`Limit`] and whether it is of bytes.
    pub fn burst(&self, choice: &ClassChoice, size_bytes: u64) -> Option<Limit> {
        let limits = self.get(&choice.name)?.limits(choice, size_bytes, None);
        [limits.operations, limits.bytes]
            .into_iter()
            .flatten()
            .find(|limit| limit.burst.is_some())
    }
}

/// Size in GiB; a part of one counts as a whole, so that the roots of small images have classes.
pub fn size_gib(size_bytes: u64) -> u64 {
    size_bytes.div_ceil(GIB)
}

impl Class {
    /// What a volume may do in a second.
    pub fn figures(&self, choice: &ClassChoice, size_bytes: u64) -> Figures {
        let size = size_gib(size_bytes);
        let figure = |rule: &Option<Rule>, asked| {
            let exact = rule.as_ref().map_or(0.0, |rule| rule.figure(size, asked));
            // Within a u32: the rule's maximum is one.
            exact.round() as u32
        };
        Figures {
            iops: figure(&self.iops, choice.iops),
            throughput_mib: figure(&self.throughput_mib, choice.throughput_mib),
        }
    }

    fn limits(&self, choice: &ClassChoice, size_bytes: u64, credits: Option<u64>) -> DiskLimits {
        let size = size_gib(size_bytes);
        let limit = |rule: &Option<Rule>, asked, one: u64| {
            let rule = rule.as_ref()?;
            // Whole operations or bytes, and at least one; the rules' figures are far from 2⁵³.
            let whole = |figure: f64| ((figure * one as f64) as u64).clamp(1, 1 << 50);
            let per_second = whole(rule.figure(size, asked));
            let burst = rule.burst.as_ref().map(|burst| Burst {
                per_second: whole(burst.figure(size)),
                most_credits: whole(burst.most_credits(size)),
                credits,
            });
            Some(Limit {
                per_second,
                burst: burst.filter(|burst| burst.per_second > per_second),
            })
        };
        DiskLimits {
            operations: limit(&self.iops, choice.iops, 1),
            bytes: limit(&self.throughput_mib, choice.throughput_mib, MIB),
            unit_bytes: self.unit_kib << 10,
            merge: self.merge,
        }
    }

    fn problem(&self) -> Option<String> {
        let word = !self.name.is_empty()
            && self.name.len() <= 32
            && self
                .name
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if !word {
            return Some("a name is 1 to 32 lower-case letters, digits and dashes".to_owned());
        }
        if !(1..=self.max_gib).contains(&self.min_gib) || self.max_gib > MAX_SIZE_GIB {
            return Some(format!("sizes are in 1 to {MAX_SIZE_GIB} GiB"));
        }
        if self.unit_kib > 1 << 20 {
            return Some("unit_kib is at most 1,048,576".to_owned());
        }
        let bursts = |rule: &Option<Rule>| rule.as_ref().is_some_and(|rule| rule.burst.is_some());
        if bursts(&self.iops) && bursts(&self.throughput_mib) {
            return Some("only one of iops and throughput_mib can have a burst".to_owned());
        }
        let of = |name: &str, rule: &Option<Rule>| {
            let problem = rule.as_ref()?.problem()?;
            Some(format!("{name}: {problem}"))
        };
        of("iops", &self.iops).or_else(|| of("throughput_mib", &self.throughput_mib))
    }
}

#[cfg(test)]
mod tests;

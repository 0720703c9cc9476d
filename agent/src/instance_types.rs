//! Instance types: names for shapes. The catalogue is a data file built into the program; the
//! operator's `instance-types.json` in the state directory, of the same form, adds types and
//! replaces those of the same name.

use std::{collections::HashMap, io, path::Path};

use hearth_vmm::{
    config::{MAX_VCPUS, MIN_MEMORY_BYTES},
    devices::virtio::{
        block::throttle::limits::MachineLimits,
        net::limits::NetLimits,
        pacing::limits::{Burst, Limit},
    },
};
use serde::Deserialize;
use thiserror::Error;

/// What an instance gets when nothing is asked for.
pub const DEFAULT: &str = "t.micro";

/// Memory of a guest comes in steps of this many MiB.
pub const MEMORY_STEP_MIB: u64 = 2;

/// Bytes per second of one megabit per second.
const MEGABIT_BYTES: u64 = 1_000_000 / 8;

/// For how long a guest that starts may receive or send at the burst rate, in seconds.
const BURST_SECONDS: u64 = 300;

/// A name for a shape.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InstanceType {
    pub name: String,
    pub vcpus: u32,
    pub memory_mib: u64,
    /// Operations that all disks together may do in a second; without it they are not limited.
    #[serde(default)]
    pub disk_iops: Option<u32>,
    /// MiB that all disks together may move in a second; without it they are not limited.
    #[serde(default)]
    pub disk_throughput_mib: Option<u32>,
    /// Megabits that all network interfaces together may carry in a second in each direction, for
    /// as long as one likes; without it they are not limited.
    #[serde(default)]
    pub network_bandwidth_mbps: Option<u32>,
    /// More than that, which is paid with credits; they come in at the rate above.
    #[serde(default)]
    pub network_burst_mbps: Option<u32>,
}

impl InstanceType {
    /// Limits of all disks together, as the VMM takes them.
    pub fn disk_limits(&self) -> MachineLimits {
        MachineLimits {
            operations_per_second: self.disk_iops.map(u64::from),
            bytes_per_second: self.disk_throughput_mib.map(|mib| u64::from(mib) << 20),
        }
    }

    /// Limits of all network interfaces together, as the VMM takes them. A guest starts with all
    /// the credits that it can have.
    pub fn net_limits(&self) -> NetLimits {
        let bytes = |mbps: u32| u64::from(mbps) * MEGABIT_BYTES;
        let limit = self.network_bandwidth_mbps.map(|mbps| Limit {
            per_second: bytes(mbps),
            burst: self.network_burst_mbps.map(|burst| Burst {
                per_second: bytes(burst),
                most_credits: bytes(burst.saturating_sub(mbps)) * BURST_SECONDS,
                credits: None,
            }),
        });
        NetLimits {
            received: limit,
            sent: limit,
        }
    }

    /// What is wrong with the figures of its network, if anything.
    fn network_problem(&self) -> Option<String> {
        match (self.network_bandwidth_mbps, self.network_burst_mbps) {
            (None, Some(_)) => {
                Some("network_burst_mbps goes beyond a network_bandwidth_mbps".to_owned())
            }
            (Some(baseline), Some(burst)) if burst <= baseline => {
                Some("network_burst_mbps is more than network_bandwidth_mbps".to_owned())
            }
            (Some(0), _) => Some("network_bandwidth_mbps is at least 1".to_owned()),
            _ => None,
        }
    }
}

/// All types, in the order of the files.
#[derive(Clone, Debug)]
pub struct Catalogue {
    types: Vec<InstanceType>,
    by_name: HashMap<String, usize>,
}

/// What is wrong with a catalogue.
#[derive(Debug, Error)]
pub enum CatalogueError {
    /// The file is there and can't be read.
    #[error("reading the instance types: {0}")]
    Read(#[from] io::Error),
    /// Not JSON, or not this form.
    #[error(
        "instance types must be a list of {{name, vcpus, memory_mib, disk_iops, \
         disk_throughput_mib, network_bandwidth_mbps, network_burst_mbps}}: {0}"
    )]
    Parse(#[from] serde_json::Error),
    /// A type that no guest could have.
    #[error("instance type {name:?}: {problem}")]
    Shape {
        /// Which.
        name: String,
        /// Why.
        problem: String,
    },
}

impl Catalogue {
    /// The built-in types, with the operator's file over them, if there is one.
    pub fn load(operator: &Path) -> Result<Self, CatalogueError> {
        let mut catalogue = Self {
            types: Vec::new(),
            by_name: HashMap::new(),
        };
        catalogue.add(include_str!("instance_types.json"))?;
        match std::fs::read_to_string(operator) {
            Ok(text) => catalogue.add(&text)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
        Ok(catalogue)
    }

    fn add(&mut self, text: &str) -> Result<(), CatalogueError> {
        for new in serde_json::from_str::<Vec<InstanceType>>(text)? {
            check(&new)?;
            match self.by_name.get(&new.name) {
                Some(&index) => self.types[index] = new,
                None => {
                    self.by_name.insert(new.name.clone(), self.types.len());
                    self.types.push(new);
                }
            }
        }
        Ok(())
    }

    /// Looks a name up.
    pub fn get(&self, name: &str) -> Option<&InstanceType> {
        self.by_name.get(name).map(|&index| &self.types[index])
    }

    /// All.
    pub fn all(&self) -> &[InstanceType] {
        &self.types
    }
}

/// What is wrong with a guest's memory, if anything.
pub fn memory_problem(memory_mib: u64) -> Option<String> {
    let least = MIN_MEMORY_BYTES >> 20;
    // Far beyond any host, and far from an overflow in bytes.
    let most = 1 << 30;
    if !(least..=most).contains(&memory_mib) {
        return Some(format!("memory is {least} to {most} MiB"));
    }
    if !memory_mib.is_multiple_of(MEMORY_STEP_MIB) {
        return Some(format!("memory is a multiple of {MEMORY_STEP_MIB} MiB"));
    }
    None
}

/// What is wrong with a number of vCPUs, if anything.
pub fn vcpus_problem(vcpus: u32) -> Option<String> {
    let most = u32::from(MAX_VCPUS);
    (!(1..=most).contains(&vcpus)).then(|| format!("a guest has 1 to {most} vCPUs"))
}

fn check(new: &InstanceType) -> Result<(), CatalogueError> {
    let well_named = new.name.split_once('.').is_some_and(|(family, size)| {
        let word = |text: &str| {
            !text.is_empty()
                && text
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        };
        word(family) && word(size)
    });
    let problem = if well_named {
        let limits = new.disk_limits().validate();
        vcpus_problem(new.vcpus)
            .or_else(|| memory_problem(new.memory_mib))
            .or_else(|| limits.err().map(|error| error.to_string()))
            .or_else(|| new.network_problem())
    } else {
        Some("a name is FAMILY.SIZE, of lower-case letters, digits and dashes".to_owned())
    };
    match problem {
        None => Ok(()),
        Some(problem) => Err(CatalogueError::Shape {
            name: new.name.clone(),
            problem,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(operator: Option<&str>) -> Result<Catalogue, CatalogueError> {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("instance-types.json");
        if let Some(text) = operator {
            std::fs::write(&path, text).expect("write");
        }
        Catalogue::load(&path)
    }

    #[test]
    fn the_built_in_catalogue_has_the_families_in_their_shapes() {
        let catalogue = load(None).expect("built in");
        assert!(catalogue.get(DEFAULT).is_some());
        let nano = catalogue.get("t.nano").expect("t.nano");
        assert_eq!((nano.vcpus, nano.memory_mib), (1, 512));
        for (family, gib_per_vcpu) in [("m", 4), ("c", 2), ("r", 8), ("i", 8)] {
            let of_family: Vec<_> = catalogue
                .all()
                .iter()
                .filter(|t| t.name.starts_with(&format!("{family}.")))
                .collect();
            assert!(of_family.len() >= 6, "{family}");
            for pair in of_family.windows(2) {
                assert_eq!(pair[1].vcpus, pair[0].vcpus * 2, "{} doubles", pair[1].name);
            }
            for shape in of_family {
                assert_eq!(
                    shape.memory_mib,
                    u64::from(shape.vcpus) * gib_per_vcpu * 1024
                );
            }
        }
    }

    #[test]
    fn the_network_of_a_larger_type_of_a_family_is_faster() {
        let catalogue = load(None).expect("built in");
        for pair in catalogue.all().windows(2) {
            let family = |shape: &InstanceType| shape.name.split('.').next().map(str::to_owned);
            let limit = |shape: &InstanceType| shape.net_limits().sent.expect("a limit");
            for shape in pair {
                assert_eq!(shape.net_limits().validate(), Ok(()), "{}", shape.name);
            }
            if family(&pair[0]) == family(&pair[1]) {
                let (small, large) = (limit(&pair[0]), limit(&pair[1]));
                assert!(large.per_second > small.per_second, "{}", pair[1].name);
            }
        }
    }

    #[test]
    fn megabits_become_bytes_and_a_burst_lasts_five_minutes() {
        let types = r#"[{"name": "x.y", "vcpus": 1, "memory_mib": 64,
            "network_bandwidth_mbps": 8, "network_burst_mbps": 40}]"#;
        let catalogue = load(Some(types)).expect("fine");
        let limits = catalogue.get("x.y").expect("new").net_limits();
        assert_eq!(limits.received, limits.sent);
        let limit = limits.sent.expect("a limit");
        assert_eq!(limit.per_second, 1_000_000);
        let burst = limit.burst.expect("a burst");
        assert_eq!(burst.per_second, 5_000_000);
        // 5 MB go and 1 MB comes in, each second.
        assert_eq!(burst.most_credits, 300 * (5_000_000 - 1_000_000));
    }

    #[test]
    fn the_operators_file_adds_types_and_replaces_them() {
        let catalogue = load(Some(
            r#"[{"name": "x.tiny", "vcpus": 1, "memory_mib": 64},
                {"name": "t.nano", "vcpus": 2, "memory_mib": 256}]"#,
        ))
        .expect("fine");
        assert_eq!(catalogue.get("x.tiny").expect("new").memory_mib, 64);
        assert_eq!(catalogue.get("t.nano").expect("replaced").vcpus, 2);
    }

    #[test]
    fn types_that_no_guest_could_have_are_refused() {
        for bad in [
            r#"[{"name": "x", "vcpus": 1, "memory_mib": 64}]"#,
            r#"[{"name": "x/y.z", "vcpus": 1, "memory_mib": 64}]"#,
            r#"[{"name": "x.y", "vcpus": 0, "memory_mib": 64}]"#,
            r#"[{"name": "x.y", "vcpus": 33, "memory_mib": 64}]"#,
            r#"[{"name": "x.y", "vcpus": 1, "memory_mib": 65}]"#,
            r#"[{"name": "x.y", "vcpus": 1, "memory_mib": 64, "disk_iops": 0}]"#,
            r#"[{"name": "x.y", "vcpus": 1, "memory_mib": 64, "network_bandwidth_mbps": 0}]"#,
            r#"[{"name": "x.y", "vcpus": 1, "memory_mib": 64, "network_burst_mbps": 9}]"#,
            r#"[{"name": "x.y", "vcpus": 1, "memory_mib": 64,
                 "network_bandwidth_mbps": 9, "network_burst_mbps": 9}]"#,
            r#"[{"name": "x.y", "vcpus": 1, "memory_mib": 18446744073709551614}]"#,
        ] {
            assert!(
                matches!(load(Some(bad)), Err(CatalogueError::Shape { .. })),
                "{bad}"
            );
        }
        assert!(matches!(load(Some("{")), Err(CatalogueError::Parse(_))));
    }
}

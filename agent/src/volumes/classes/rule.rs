//! A figure of a class, operations or MiB in a second, by the size of a volume.

use serde::Deserialize;

/// Largest figure that a class may have.
const MAX_FIGURE: u32 = 10_000_000;

/// How a figure comes about: by the size, or, with [`Rule::provisioned`], by what the caller
/// asks for.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// For each GiB.
    #[serde(default)]
    pub per_gib: f64,
    /// For each TiB.
    #[serde(default)]
    pub per_tib: f64,
    /// The least, however small the volume is.
    #[serde(default)]
    pub min: u32,
    /// The most; all that a volume has if nothing goes by the size.
    pub max: u32,
    #[serde(default)]
    pub burst: Option<BurstRule>,
    #[serde(default)]
    pub provisioned: Option<Provisioned>,
}

/// What a volume may do beyond its figure while it has credits.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BurstRule {
    /// For each GiB.
    #[serde(default)]
    pub per_gib: f64,
    /// For each TiB.
    #[serde(default)]
    pub per_tib: f64,
    /// The most; all that a volume has if nothing goes by the size.
    pub max: u32,
    /// Most credits that a volume keeps, and what it has at first: operations or MiB.
    #[serde(default)]
    pub credits: u64,
    /// Credits for each GiB.
    #[serde(default)]
    pub credits_per_gib: u64,
}

/// What a caller may ask for.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provisioned {
    /// The least that can be asked for.
    pub min: u32,
    /// What a volume has if nothing is asked for. Without it, one must ask.
    #[serde(default)]
    pub included: Option<u32>,
    /// The most that can be asked for, for each GiB.
    #[serde(default)]
    pub max_per_gib: Option<f64>,
    /// The most that can be asked for, for each operation in a second.
    #[serde(default)]
    pub max_per_iops: Option<f64>,
}

fn by_size(per_gib: f64, per_tib: f64, max: u32, size_gib: u64) -> f64 {
    let slope = per_gib + per_tib / 1024.0;
    // Sizes are at most 65,536.
    match slope > 0.0 {
        true => (slope * size_gib as f64).min(max.into()),
        false => max.into(),
    }
}

impl Rule {
    /// The figure of a volume for which `asked` was asked; 0 is the class's own.
    pub fn figure(&self, size_gib: u64, asked: u32) -> f64 {
        match &self.provisioned {
            Some(_) if asked > 0 => asked.min(self.max).into(),
            Some(provisioned) => provisioned.included.unwrap_or(provisioned.min).into(),
            None => {
                let figure = by_size(self.per_gib, self.per_tib, self.max, size_gib);
                figure.max(self.min.into())
            }
        }
    }

    /// The most that can be asked for; with `iops` operations in a second.
    pub fn most(&self, provisioned: &Provisioned, size_gib: u64, iops: u32) -> u32 {
        let by_size = provisioned.max_per_gib.map(|most| most * size_gib as f64);
        let by_iops = provisioned.max_per_iops.map(|most| most * f64::from(iops));
        let most = [by_size, by_iops]
            .into_iter()
            .flatten()
            .fold(self.max.into(), f64::min);
        let least = provisioned.included.unwrap_or(provisioned.min);
        // Not more than `max`, which is a u32.
        (most as u32).max(least)
    }

    /// Why no volume can have it, if so.
    pub fn problem(&self) -> Option<String> {
        let slopes = [self.per_gib, self.per_tib];
        let ratios = self
            .provisioned
            .iter()
            .flat_map(|p| [p.max_per_gib, p.max_per_iops]);
        let bursts = self
            .burst
            .iter()
            .flat_map(|burst| [burst.per_gib, burst.per_tib]);
        let mut factors = slopes.into_iter().chain(bursts).chain(ratios.flatten());
        if factors.any(|factor| !(0.0..=1e6).contains(&factor)) {
            return Some("what goes by the size is 0 to 1,000,000".to_owned());
        }
        let figures = self.burst.iter().map(|burst| burst.max).chain([self.max]);
        for figure in figures {
            if !(1..=MAX_FIGURE).contains(&figure) {
                return Some(format!("max is 1 to {MAX_FIGURE}, not {figure}"));
            }
        }
        if self.min > self.max {
            return Some("min is more than max".to_owned());
        }
        if let Some(burst) = &self.burst {
            let most = burst.credits.checked_add(burst.credits_per_gib);
            if self.provisioned.is_some() {
                return Some("what is provisioned has no burst".to_owned());
            }
            if !most.is_some_and(|most| (1..=1 << 24).contains(&most)) {
                return Some("credits and credits_per_gib are 1 to 16,777,216 together".to_owned());
            }
        }
        match &self.provisioned {
            Some(p) if !(1..=self.max).contains(&p.min) => {
                Some("provisioned.min is 1 to max".into())
            }
            Some(p)
                if p.included
                    .is_some_and(|included| !(p.min..=self.max).contains(&included)) =>
            {
                Some("provisioned.included is provisioned.min to max".to_owned())
            }
            _ => None,
        }
    }
}

impl BurstRule {
    /// What a volume may do while it has credits.
    pub fn figure(&self, size_gib: u64) -> f64 {
        by_size(self.per_gib, self.per_tib, self.max, size_gib)
    }

    /// Most credits that a volume keeps.
    pub fn most_credits(&self, size_gib: u64) -> f64 {
        (self.credits + self.credits_per_gib * size_gib) as f64
    }
}

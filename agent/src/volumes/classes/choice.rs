//! What a caller asks of a class.

use serde::{Deserialize, Serialize};

use super::{Class, Classes, rule::Rule, size_gib};
use crate::{
    error::{ApiError, ApiResult, Reason},
    ids::shortened,
};

/// A class, and what was asked for beyond it; 0 is the class's own figure.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassChoice {
    pub name: String,
    pub iops: u32,
    pub throughput_mib: u32,
}

impl ClassChoice {
    /// As on the wire: an empty name is the default class.
    pub fn from_wire(name: String, iops: u32, throughput_mib: u32) -> Self {
        Self {
            name: match name.as_str() {
                "" => super::DEFAULT.to_owned(),
                _ => name,
            },
            iops,
            throughput_mib,
        }
    }
}

impl Classes {
    /// Checks what a caller asked for, for a volume of this size. `path` is what comes before
    /// the names of fields, such as `block_devices[0].`.
    pub fn check(&self, choice: &ClassChoice, size_bytes: u64, path: &str) -> ApiResult<()> {
        let class = self.named(choice, path)?;
        let size = size_gib(size_bytes);
        if !(class.min_gib..=class.max_gib).contains(&size) {
            return Err(ApiError::invalid(
                format!("{path}size_gib"),
                format!(
                    "a volume of class {} has {} to {} GiB, not {size}",
                    class.name, class.min_gib, class.max_gib
                ),
            ));
        }
        let iops = check_figure(class, &class.iops, choice.iops, size, 0, path, "iops")?;
        let (rule, asked) = (&class.throughput_mib, choice.throughput_mib);
        check_figure(class, rule, asked, size, iops, path, "throughput_mib").map(drop)
    }

    /// The class that a caller named.
    pub fn named(&self, choice: &ClassChoice, path: &str) -> ApiResult<&Class> {
        self.get(&choice.name).ok_or_else(|| {
            let names: Vec<&str> = self.all().iter().map(|class| class.name.as_str()).collect();
            ApiError::invalid(
                format!("{path}volume_class"),
                format!(
                    "there is no volume class {:?}; there are {}",
                    shortened(&choice.name),
                    names.join(", ")
                ),
            )
        })
    }
}

/// Checks one figure; gives the one that the volume would have, rounded.
fn check_figure(
    class: &Class,
    rule: &Option<Rule>,
    asked: u32,
    size_gib: u64,
    iops: u32,
    path: &str,
    name: &str,
) -> ApiResult<u32> {
    let field = format!("{path}{name}");
    let Some((rule, provisioned)) = rule
        .as_ref()
        .and_then(|r| Some((r, r.provisioned.as_ref()?)))
    else {
        if asked > 0 {
            let how = match rule {
                Some(_) => "it has what its class and size give",
                None => "it is not limited",
            };
            return Err(ApiError::field(
                Reason::InvalidParameterCombination,
                field,
                format!("no {name} can be asked for in class {}; {how}", class.name),
            ));
        }
        return Ok(rule
            .as_ref()
            .map_or(0, |rule| rule.figure(size_gib, 0).round() as u32));
    };
    let (least, most) = (provisioned.min, rule.most(provisioned, size_gib, iops));
    if asked == 0 && provisioned.included.is_none() {
        return Err(ApiError::field(
            Reason::MissingParameter,
            field,
            format!("class {} needs it: {least} to {most}", class.name),
        ));
    }
    if asked > 0 && !(least..=most).contains(&asked) {
        let whence = match (provisioned.max_per_gib, provisioned.max_per_iops) {
            (Some(ratio), _) => format!(
                " with {size_gib} GiB (at most {} and {ratio} per GiB)",
                rule.max
            ),
            (_, Some(ratio)) => format!(
                " with {iops} IOPS (at most {} and {ratio} per IOPS)",
                rule.max
            ),
            _ => String::new(),
        };
        return Err(ApiError::invalid(
            field,
            format!(
                "a volume of class {} has {least} to {most}{whence}, not {asked}",
                class.name
            ),
        ));
    }
    Ok(rule.figure(size_gib, asked).round() as u32)
}

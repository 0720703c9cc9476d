//! `hearth volume classes`, `hearth volume modify`, and how volumes' figures are shown.

use clap::Args;
use hearth_proto::v1::{
    DescribeVolumeClassesRequest, ModifyVolumeRequest, Volume, VolumeClass, VolumeClassFigure,
    VolumeModification, VolumeModificationState,
};

use crate::{
    client::Client,
    failure::Failure,
    human::{self, parse_gib},
    output::{self, Output},
    volume::{failed, print_volumes},
};

/// Class and figures of a new volume.
#[derive(Args, Clone, Debug, Default)]
pub struct ClassArgs {
    /// Volume class; see `hearth volume classes`. By default gp3.
    #[arg(long)]
    pub class: Option<String>,
    /// Operations in a second, where the class lets one ask for them.
    #[arg(long, value_name = "N")]
    pub iops: Option<u32>,
    /// MiB in a second, where the class lets one ask for them.
    #[arg(long, value_name = "MIB")]
    pub throughput: Option<u32>,
}

#[derive(Args)]
pub struct ModifyArgs {
    /// The volume's id.
    #[arg(value_name = "VOLUME")]
    id: String,
    /// New size in GiB (20, 20G, 1T); a volume only grows.
    #[arg(long, value_parser = parse_gib, required_unless_present_any = ["class", "iops", "throughput"])]
    size: Option<u64>,
    /// New class; see `hearth volume classes`.
    #[arg(long)]
    class: Option<String>,
    /// New number of operations in a second.
    #[arg(long, value_name = "N")]
    iops: Option<u32>,
    /// New number of MiB in a second.
    #[arg(long, value_name = "MIB")]
    throughput: Option<u32>,
}

pub async fn modify(client: &mut Client, output: Output, args: ModifyArgs) -> Result<(), Failure> {
    let request = ModifyVolumeRequest {
        volume_id: args.id,
        size_gib: args.size.unwrap_or(0),
        volume_class: args.class.unwrap_or_default(),
        iops: args.iops.unwrap_or(0),
        throughput_mib: args.throughput.unwrap_or(0),
    };
    let answer = client
        .volumes
        .modify_volume(request)
        .await
        .map_err(failed)?
        .into_inner();
    match output {
        Output::Json => output::json("ModifyVolumeResponse", &answer),
        Output::Table => print_volumes(answer.volume.as_slice()),
    }
}

pub async fn classes(client: &mut Client, output: Output) -> Result<(), Failure> {
    let answer = client
        .volumes
        .describe_volume_classes(DescribeVolumeClassesRequest {})
        .await
        .map_err(failed)?
        .into_inner();
    if output == Output::Json {
        return output::json("DescribeVolumeClassesResponse", &answer);
    }
    let row = |class: &VolumeClass| {
        vec![
            class.name.clone(),
            class.medium.clone(),
            format!("{}–{} GiB", class.min_size_gib, class.max_size_gib),
            figure(class.iops.as_ref()),
            figure(class.throughput_mib.as_ref()),
            match class.operation_kib {
                0 => "any size".to_owned(),
                kib => human::bytes(kib << 10),
            },
        ]
    };
    let rows = answer.volume_classes.iter().map(row).collect();
    let header = ["CLASS", "MEDIUM", "SIZE", "IOPS", "MIB/S", "ONE OPERATION"];
    output::table(&header, &[], rows)
}

/// In a few words, such as `3 per GiB, 100–16000, burst 3000`.
fn figure(figure: Option<&VolumeClassFigure>) -> String {
    let Some(figure) = figure else {
        return "not limited".to_owned();
    };
    let by_size = |per_gib: f64, max: u32| match per_gib {
        0.0 => max.to_string(),
        rate if rate < 0.5 => format!("{} per TiB, up to {max}", rate * 1024.0),
        rate => format!("{rate} per GiB, up to {max}"),
    };
    let mut words = if figure.provisioned {
        let mut words = format!("{}–{}", figure.min, figure.max);
        for (ratio, of) in [(figure.max_per_gib, "GiB"), (figure.max_per_iops, "IOPS")] {
            if ratio > 0.0 {
                words += &format!(", {ratio} per {of}");
            }
        }
        match figure.included {
            0 => words,
            included => format!("{words}, {included} included"),
        }
    } else {
        let words = by_size(figure.per_gib, figure.max);
        match figure.min {
            0 => words,
            min => format!("{words}, at least {min}"),
        }
    };
    if let Some(burst) = &figure.burst {
        words += &format!("; burst {}", by_size(burst.per_gib, burst.max));
    }
    words
}

/// `3000 IOPS, 125 MiB/s`.
pub fn figures(volume: &Volume) -> String {
    let part = |figure: u32, unit: &str| match figure {
        0 => format!("any {unit}"),
        figure => format!("{figure} {unit}"),
    };
    let (iops, throughput) = (volume.iops, volume.throughput_mib);
    format!("{}, {}", part(iops, "IOPS"), part(throughput, "MiB/s"))
}

/// `completed, 1 h ago` or why it failed; empty if there was none.
pub fn modification(volume: &Volume) -> String {
    let Some(modification) = &volume.modification else {
        return String::new();
    };
    let word = human::enum_word(
        modification.state().as_str_name(),
        "VOLUME_MODIFICATION_STATE_",
    );
    match modification.state() {
        VolumeModificationState::Failed => format!("{word}: {}", modification.message),
        VolumeModificationState::Completed => {
            format!(
                "{word} {}",
                human::time_and_age(modification.end_time.as_ref())
            )
        }
        _ => format!(
            "{word}, {} %{}",
            modification.progress_percent,
            goal(modification)
        ),
    }
}

fn goal(modification: &VolumeModification) -> String {
    match &modification.target {
        Some(target) => format!(
            ", to {} of {}",
            human::bytes(target.size_bytes),
            target.volume_class
        ),
        None => String::new(),
    }
}

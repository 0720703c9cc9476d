//! Volumes and their classes as the wire has them.

use hearth_proto::v1;

use super::convert::tags_out;
use crate::{
    time::Millis,
    volumes::{
        VolumeView,
        classes::{
            Class,
            rule::{BurstRule, Rule},
        },
        model::{AttachmentState, Modification, ModificationState, Target, VolumeState},
    },
};

pub fn volume(view: VolumeView) -> v1::Volume {
    let VolumeView {
        volume,
        allocated_bytes,
        figures,
        burst_balance_percent,
    } = view;

    let state = match volume.state {
        VolumeState::Creating => v1::VolumeState::Creating,
        VolumeState::Available => v1::VolumeState::Available,
        VolumeState::InUse => v1::VolumeState::InUse,
        VolumeState::Deleting => v1::VolumeState::Deleting,
    };
    v1::Volume {
        volume_id: volume.id,
        owner_id: volume.owner,
        state: state.into(),
        size_bytes: volume.size_bytes,
        image_id: volume.image_id.unwrap_or_default(),
        attachment: volume.attachment.map(|attachment| v1::VolumeAttachment {
            instance_id: attachment.instance_id,
            device_name: attachment.device,
            delete_on_termination: attachment.delete_on_termination,
            read_only: attachment.read_only,
            state: match attachment.state {
                AttachmentState::Attaching => v1::AttachmentState::Attaching,
                AttachmentState::Attached => v1::AttachmentState::Attached,
                AttachmentState::Detaching => v1::AttachmentState::Detaching,
            }
            .into(),
        }),
        create_time: Some(volume.create_time.into()),
        tags: tags_out(volume.tags),
        client_token: volume.client_token,
        allocated_bytes,
        snapshot_id: volume.snapshot_id.unwrap_or_default(),
        volume_class: volume.class.name,
        iops: figures.iops,
        throughput_mib: figures.throughput_mib,
        modification: volume.modification.map(modification),
        burst_balance_percent,
    }
}

fn modification(modification: Modification) -> v1::VolumeModification {
    let (state, percent) = match modification.state {
        ModificationState::Modifying => (v1::VolumeModificationState::Modifying, 0),
        ModificationState::Completed => (v1::VolumeModificationState::Completed, 100),
        ModificationState::Failed => (v1::VolumeModificationState::Failed, 0),
    };
    v1::VolumeModification {
        state: state.into(),
        progress_percent: percent,
        original: Some(target(modification.original)),
        target: Some(target(modification.target)),
        start_time: Some(Millis(modification.start).into()),
        end_time: modification.end.map(|end| Millis(end).into()),
        message: modification.message,
    }
}

fn target(target: Target) -> v1::VolumeTarget {
    v1::VolumeTarget {
        size_bytes: target.size_bytes,
        volume_class: target.class.name,
        iops: target.class.iops,
        throughput_mib: target.class.throughput_mib,
    }
}

pub fn volume_class(class: &Class) -> v1::VolumeClass {
    v1::VolumeClass {
        name: class.name.clone(),
        medium: class.medium.clone(),
        min_size_gib: class.min_gib,
        max_size_gib: class.max_gib,
        operation_kib: class.unit_kib,
        merges_sequential: class.merge,
        iops: class.iops.as_ref().map(figure),
        throughput_mib: class.throughput_mib.as_ref().map(figure),
    }
}

fn figure(rule: &Rule) -> v1::VolumeClassFigure {
    let provisioned = rule.provisioned.as_ref();
    v1::VolumeClassFigure {
        per_gib: rule.per_gib + rule.per_tib / 1024.0,
        min: provisioned.map_or(rule.min, |p| p.min),
        max: rule.max,
        provisioned: provisioned.is_some(),
        included: provisioned.and_then(|p| p.included).unwrap_or(0),
        max_per_gib: provisioned.and_then(|p| p.max_per_gib).unwrap_or(0.0),
        max_per_iops: provisioned.and_then(|p| p.max_per_iops).unwrap_or(0.0),
        burst: rule.burst.as_ref().map(burst),
    }
}

fn burst(rule: &BurstRule) -> v1::VolumeClassBurst {
    v1::VolumeClassBurst {
        per_gib: rule.per_gib + rule.per_tib / 1024.0,
        max: rule.max,
        credits: rule.credits,
        credits_per_gib: rule.credits_per_gib,
    }
}

//! `StoreService`.

use std::sync::Arc;

use hearth_images::{CheckOptions, CheckProgress, DiskFormat, FindingKind, StoreReport};
use hearth_proto::v1::{self, store_service_server::StoreService};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tonic::{Request, Response, Status};

use super::convert;
use crate::{
    accounts::{Account, Named},
    context::Context,
    error::ApiResult,
    ids::Kind,
    upkeep::{
        check, export,
        usage::{self, UsageRequest, id_of},
    },
};

/// The service.
pub struct StoreApi {
    pub context: Arc<Context>,
}

type Answers<T> = std::pin::Pin<Box<dyn tokio_stream::Stream<Item = Result<T, Status>> + Send>>;

fn export_format(format: i32) -> ApiResult<DiskFormat> {
    let format = convert::disk_format(format, "format")?;
    Ok(format.unwrap_or(DiskFormat::Qcow2))
}

fn export_answers(messages: export::Messages) -> Response<Answers<v1::ExportResponse>> {
    let answers = ReceiverStream::new(messages).map(|message| {
        Ok(v1::ExportResponse {
            message: Some(export_message(message?)),
        })
    });
    Response::new(Box::pin(answers))
}

fn export_message(message: export::Message) -> v1::export_response::Message {
    use v1::export_response::Message;
    match message {
        export::Message::Header {
            format,
            length_bytes,
            size_bytes,
        } => Message::Header(v1::ExportHeader {
            format: match format {
                DiskFormat::Raw => v1::DiskFormat::Raw,
                DiskFormat::Qcow2 => v1::DiskFormat::Qcow2,
            }
            .into(),
            length_bytes,
            size_bytes,
        }),
        export::Message::Data(data) => Message::Data(data),
        export::Message::Zeroes(length) => Message::Zeroes(length),
        export::Message::Trailer(sha256) => Message::Trailer(v1::ExportTrailer { sha256 }),
    }
}

fn check_message(message: check::Message) -> v1::check_store_response::Message {
    use v1::check_store_response::Message;
    match message {
        check::Message::Progress(progress) => Message::Progress(check_progress(progress)),
        check::Message::Report(report) => Message::Report(store_report(report)),
    }
}

fn check_progress(progress: CheckProgress) -> v1::CheckProgress {
    v1::CheckProgress {
        layers_done: progress.layers_done,
        layers_total: progress.layers_total,
        bytes_read: progress.bytes_read,
        bytes_total: progress.bytes_total,
    }
}

fn store_report(report: StoreReport) -> v1::StoreReport {
    v1::StoreReport {
        clean: report.is_clean(),
        volumes: report.volumes,
        snapshots: report.snapshots,
        layers: report.layers,
        checksums_verified: report.checksums_verified,
        checksums_missing: report.checksums_missing,
        skipped: report
            .skipped
            .into_iter()
            .map(|skipped| v1::SkippedVolume {
                volume_id: skipped.volume.to_string(),
                reason: skipped.reason,
            })
            .collect(),
        findings: report
            .findings
            .into_iter()
            .map(|finding| v1::StoreFinding {
                kind: finding_kind(finding.kind).into(),
                file: finding.file,
                detail: finding.detail,
                affected_ids: finding
                    .affected
                    .iter()
                    .map(|owner| id_of(owner).to_owned())
                    .collect(),
                lost_bytes: finding.lost_bytes,
                repaired: finding.repaired,
                damage: finding.kind.is_damage(),
            })
            .collect(),
    }
}

fn finding_kind(kind: FindingKind) -> v1::StoreFindingKind {
    match kind {
        FindingKind::Record => v1::StoreFindingKind::Record,
        FindingKind::Chain => v1::StoreFindingKind::Chain,
        FindingKind::Layer => v1::StoreFindingKind::Layer,
        FindingKind::Checksum => v1::StoreFindingKind::Checksum,
        FindingKind::ChecksumFile => v1::StoreFindingKind::ChecksumFile,
        FindingKind::NotClosed => v1::StoreFindingKind::NotClosed,
        FindingKind::LeakedClusters => v1::StoreFindingKind::LeakedClusters,
        FindingKind::UnusedLayer => v1::StoreFindingKind::UnusedLayer,
        FindingKind::StaleFile => v1::StoreFindingKind::StaleFile,
        _ => v1::StoreFindingKind::Unspecified,
    }
}

#[tonic::async_trait]
impl StoreService for StoreApi {
    type CheckStoreStream = Answers<v1::CheckStoreResponse>;
    type ExportVolumeStream = Answers<v1::ExportResponse>;
    type ExportSnapshotStream = Answers<v1::ExportResponse>;
    type ExportImageStream = Answers<v1::ExportResponse>;

    async fn check_store(
        &self,
        request: Request<v1::CheckStoreRequest>,
    ) -> Result<Response<Self::CheckStoreStream>, Status> {
        let request = request.into_inner();
        let options = CheckOptions {
            repair: request.repair,
            checksums: !request.skip_checksums,
        };
        let messages = check::check(self.context.clone(), options);
        let answers = ReceiverStream::new(messages).map(|message| {
            Ok(v1::CheckStoreResponse {
                message: Some(check_message(message?)),
            })
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn describe_usage(
        &self,
        request: Request<v1::DescribeUsageRequest>,
    ) -> Result<Response<v1::DescribeUsageResponse>, Status> {
        let account = Account::of(&request)?;
        let request = request.into_inner();
        let request = UsageRequest {
            account,
            ids: request.resource_ids,
            totals_only: request.totals_only,
        };
        let view = usage::describe(&self.context, request).await?;
        Ok(Response::new(v1::DescribeUsageResponse {
            resources: view
                .objects
                .into_iter()
                .map(|object| v1::ResourceUsage {
                    resource_id: object.id,
                    owner_id: object.owner,
                    own_bytes: object.blocks.own_bytes,
                    shared_bytes: object.blocks.shared_bytes,
                })
                .collect(),
            accounts: view
                .accounts
                .into_iter()
                .map(|(owner_id, blocks)| v1::AccountUsage {
                    owner_id,
                    own_bytes: blocks.own_bytes,
                    shared_bytes: blocks.shared_bytes,
                })
                .collect(),
            total_bytes: view.total_bytes,
            unused_bytes: view.unused_bytes,
        }))
    }

    async fn export_volume(
        &self,
        request: Request<v1::ExportVolumeRequest>,
    ) -> Result<Response<Self::ExportVolumeStream>, Status> {
        let account = Account::of(&request)?;
        let request = request.into_inner();
        let named = Named::own(Kind::Volume, &request.volume_id, "volume_id");
        account.check(&self.context, vec![named]).await?;
        let format = export_format(request.format)?;
        let messages = export::volume(self.context.clone(), request.volume_id, format).await?;
        Ok(export_answers(messages))
    }

    async fn export_snapshot(
        &self,
        request: Request<v1::ExportSnapshotRequest>,
    ) -> Result<Response<Self::ExportSnapshotStream>, Status> {
        let account = Account::of(&request)?;
        let request = request.into_inner();
        let named = Named::usable(Kind::Snapshot, &request.snapshot_id, "snapshot_id");
        account.check(&self.context, vec![named]).await?;
        let format = export_format(request.format)?;
        let messages = export::snapshot(self.context.clone(), request.snapshot_id, format).await?;
        Ok(export_answers(messages))
    }

    async fn export_image(
        &self,
        request: Request<v1::ExportImageRequest>,
    ) -> Result<Response<Self::ExportImageStream>, Status> {
        let account = Account::of(&request)?;
        let request = request.into_inner();
        let named = Named::usable(Kind::Image, &request.image_id, "image_id");
        account.check(&self.context, vec![named]).await?;
        let format = export_format(request.format)?;
        let messages = export::image(self.context.clone(), request.image_id, format).await?;
        Ok(export_answers(messages))
    }
}

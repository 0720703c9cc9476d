//! `FlowLogService`.

use std::sync::Arc;

use hearth_proto::v1::{self, flow_log_service_server::FlowLogService};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::convert;
use crate::{
    accounts::{Account, Named},
    context::Context,
    error::{ApiError, ApiResult, Reason},
    flow_logs::{
        self, CREATE, CreateRequest,
        model::{FlowLog, TrafficType},
        read::{ReadRequest, Reader},
        record::{Content, Record, VERSION},
    },
    ids::Kind,
    tokens::ClientToken,
};

/// Answers that may wait for a slow caller.
const WAITING: usize = 4;

/// Records of one answer: well below what clients take.
const RECORDS: usize = 2000;

/// The service.
pub struct FlowLogApi {
    pub context: Arc<Context>,
}

fn wire(log: FlowLog) -> v1::FlowLog {
    let traffic_type = match log.traffic {
        TrafficType::Accept => v1::FlowLogTrafficType::Accept,
        TrafficType::Reject => v1::FlowLogTrafficType::Reject,
        TrafficType::All => v1::FlowLogTrafficType::All,
    };
    v1::FlowLog {
        flow_log_id: log.id,
        owner_id: log.owner,
        resource_id: log.resource_id,
        traffic_type: traffic_type.into(),
        max_aggregation_interval: log.interval,
        create_time: Some(log.create_time.into()),
        tags: convert::tags_out(log.tags),
    }
}

fn traffic_type(number: i32) -> ApiResult<TrafficType> {
    match v1::FlowLogTrafficType::try_from(number) {
        Ok(v1::FlowLogTrafficType::Accept) => Ok(TrafficType::Accept),
        Ok(v1::FlowLogTrafficType::Reject) => Ok(TrafficType::Reject),
        Ok(v1::FlowLogTrafficType::All) => Ok(TrafficType::All),
        Ok(v1::FlowLogTrafficType::Unspecified) => Err(ApiError::field(
            Reason::MissingParameter,
            "traffic_type",
            "say which traffic: accepted, rejected or all",
        )),
        Err(_) => Err(ApiError::invalid(
            "traffic_type",
            format!("{number} is no traffic type"),
        )),
    }
}

fn record(record: Record) -> v1::FlowLogRecord {
    let mut wire = v1::FlowLogRecord {
        version: VERSION,
        account_id: record.account,
        network_interface_id: record.interface,
        start: record.start,
        end: record.end,
        log_status: record.content.status().to_owned(),
        ..Default::default()
    };
    if let Content::Data(data) = record.content {
        wire.action = data.action().to_owned();
        wire.flow_direction = data.direction().to_owned();
        wire.source_address = data.source.to_string();
        wire.destination_address = data.destination.to_string();
        wire.source_port = data.source_port.into();
        wire.destination_port = data.destination_port.into();
        wire.protocol = data.protocol.into();
        wire.packets = data.packets;
        wire.bytes = data.bytes;
    }
    wire
}

#[tonic::async_trait]
impl FlowLogService for FlowLogApi {
    async fn create_flow_logs(
        &self,
        request: Request<v1::CreateFlowLogsRequest>,
    ) -> Result<Response<v1::CreateFlowLogsResponse>, Status> {
        let owner = Account::of(&request)?.owner()?;
        let request = request.into_inner();
        let token = &request.client_token;
        let token = ClientToken::of(&owner, CREATE, token, "client_token", &request)?;
        let request = CreateRequest {
            owner,
            traffic: traffic_type(request.traffic_type)?,
            resource_ids: request.resource_ids,
            interval: request.max_aggregation_interval,
            tags: convert::tags_in(request.tags),
            client_token: request.client_token,
            token,
        };
        let logs = flow_logs::create(self.context.clone(), request).await?;
        Ok(Response::new(v1::CreateFlowLogsResponse {
            flow_logs: logs.into_iter().map(wire).collect(),
        }))
    }

    async fn describe_flow_logs(
        &self,
        request: Request<v1::DescribeFlowLogsRequest>,
    ) -> Result<Response<v1::DescribeFlowLogsResponse>, Status> {
        let account = Account::of(&request)?;
        let v1::DescribeFlowLogsRequest {
            flow_log_ids: ids,
            filters,
            page,
        } = request.into_inner();
        let query = super::query::<FlowLog>(account, &ids, "flow_log_ids", filters, page)?;
        let page = flow_logs::describe(&self.context, query).await?;
        Ok(Response::new(v1::DescribeFlowLogsResponse {
            flow_logs: page.objects.into_iter().map(wire).collect(),
            next_token: page.next_token,
        }))
    }

    async fn delete_flow_logs(
        &self,
        request: Request<v1::DeleteFlowLogsRequest>,
    ) -> Result<Response<v1::DeleteFlowLogsResponse>, Status> {
        let account = Account::of(&request)?;
        let ids = request.into_inner().flow_log_ids;
        let named = ids
            .iter()
            .enumerate()
            .map(|(index, id)| Named::own(Kind::FlowLog, id, format!("flow_log_ids[{index}]")));
        account.check(&self.context, named.collect()).await?;
        flow_logs::delete(self.context.clone(), ids).await?;
        Ok(Response::new(v1::DeleteFlowLogsResponse {}))
    }

    type ReadFlowLogStream = ReceiverStream<Result<v1::ReadFlowLogResponse, Status>>;

    async fn read_flow_log(
        &self,
        request: Request<v1::ReadFlowLogRequest>,
    ) -> Result<Response<Self::ReadFlowLogStream>, Status> {
        let account = Account::of(&request)?;
        let request = request.into_inner();
        let named = Named::own(Kind::FlowLog, &request.flow_log_id, "flow_log_id");
        account.check(&self.context, vec![named]).await?;
        let start = request.start_time.as_ref();
        let start = start.map(|time| convert::time_in(time, "start_time"));
        let request = ReadRequest {
            flow_log_id: request.flow_log_id,
            interface_id: request.network_interface_id,
            start: start.transpose()?,
            follow: request.follow,
        };
        let mut reader = Reader::start(self.context.clone(), request).await?;
        let (sender, receiver) = mpsc::channel(WAITING);
        let mut shutdown = self.context.shutdown.clone();
        tokio::spawn(async move {
            loop {
                let next = tokio::select! {
                    next = reader.next() => next,
                    () = sender.closed() => return,
                    () = shutdown.wait() => {
                        Err(ApiError::new(Reason::Unavailable, "hearthd is ending"))
                    }
                };
                let records = match next {
                    Ok(Some(records)) => records,
                    Ok(None) => return,
                    Err(error) => {
                        let _ = sender.send(Err(error.into())).await;
                        return;
                    }
                };
                for records in records.chunks(RECORDS) {
                    let records = records.iter().cloned().map(record).collect();
                    let answer = v1::ReadFlowLogResponse { records };
                    if sender.send(Ok(answer)).await.is_err() {
                        return;
                    }
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

//! `InstanceService`.

use std::{sync::Arc, time::Duration};

use hearth_proto::v1::{self, instance_service_server::InstanceService};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{convert, forward_port};
use crate::{
    accounts::{Account, Named},
    blocking::carried_through,
    console::{output, session::Session},
    context::Context,
    error::{ApiError, ApiResult, Reason},
    ids::Kind,
    instances::{
        Instances, Listed, STOP_PATIENCE,
        disks::DiskRequest,
        driver::Change,
        launch::LaunchRequest,
        metadata_options,
        model::Interface,
        state::{Asked, InstanceState},
    },
    tokens::ClientToken,
};

/// Pieces of console traffic that may wait.
const WAITING: usize = 64;

/// The service.
pub struct InstanceApi {
    pub context: Arc<Context>,
    pub instances: Arc<Instances>,
}

impl InstanceApi {
    async fn ask(
        &self,
        account: &Account,
        ids: &[String],
        what: Asked,
        patience: Duration,
    ) -> ApiResult<Vec<(String, Change)>> {
        let ids = Kind::Instance.check_list(ids, "instance_ids")?;
        let own = |(index, id): (usize, &String)| {
            Named::own(Kind::Instance, id, format!("instance_ids[{index}]"))
        };
        let named = ids.iter().enumerate().map(own).collect();
        account.check(&self.context, named).await?;
        let instances = self.instances.clone();
        carried_through(async move { instances.ask(ids, what, patience).await }).await
    }

    fn launch_request(owner: String, request: v1::RunInstancesRequest) -> ApiResult<LaunchRequest> {
        let token = ClientToken::of(
            &owner,
            "RunInstances",
            &request.client_token,
            "client_token",
            &request,
        )?;
        let networks = convert::network_request(&request);
        Ok(LaunchRequest {
            owner,
            image_id: request.image_id,
            instance_type: request.instance_type,
            min_count: request.min_count,
            max_count: request.max_count,
            disks: request
                .block_devices
                .into_iter()
                .map(disk_request)
                .collect(),
            user_data: request.user_data,
            tags: convert::tags_in(request.tags),
            client_token: request.client_token,
            token,
            dry_run: request.dry_run,
            extra_kernel_args: request.extra_kernel_args,
            vcpus: request.vcpus,
            memory_mib: request.memory_mib,
            interfaces: request
                .tap_interfaces
                .into_iter()
                .map(|interface| Interface {
                    tap: interface.tap_name,
                    mac: interface.mac_address,
                })
                .collect(),
            networks,
            key_name: request.key_name,
            metadata_options: request.metadata_options.unwrap_or_default(),
        })
    }
}

/// The groups of a list below `field`, which must be the caller's own.
fn own_groups(ids: &[String], field: &str) -> Vec<Named> {
    let dot = if field.is_empty() { "" } else { "." };
    let own = |(index, id): (usize, &String)| {
        let field = format!("{field}{dot}security_group_ids[{index}]");
        Named::own(Kind::SecurityGroup, id, field)
    };
    ids.iter().enumerate().map(own).collect()
}

fn disk_request(mapping: v1::BlockDeviceMapping) -> DiskRequest {
    DiskRequest {
        device_name: mapping.device_name,
        size_gib: mapping.size_gib,
        volume_class: mapping.volume_class,
        iops: mapping.iops,
        throughput_mib: mapping.throughput_mib,
        volume_id: mapping.volume_id,
        snapshot_id: mapping.snapshot_id,
        delete_on_termination: mapping.delete_on_termination,
        read_only: mapping.read_only,
    }
}

#[tonic::async_trait]
impl InstanceService for InstanceApi {
    async fn run_instances(
        &self,
        request: Request<v1::RunInstancesRequest>,
    ) -> Result<Response<v1::RunInstancesResponse>, Status> {
        let account = Account::of(&request)?;
        let request = request.into_inner();
        let mut named = vec![Named::usable(Kind::Image, &request.image_id, "image_id")];
        for (index, disk) in request.block_devices.iter().enumerate() {
            let field = format!("block_devices[{index}].volume_id");
            named.push(Named::own(Kind::Volume, &disk.volume_id, field));
            let field = format!("block_devices[{index}].snapshot_id");
            named.push(Named::usable(Kind::Snapshot, &disk.snapshot_id, field));
        }
        for (index, interface) in request.network_interfaces.iter().enumerate() {
            let field = format!("network_interfaces[{index}]");
            let network = &interface.network_id;
            named.push(Named::own(
                Kind::Network,
                network,
                format!("{field}.network_id"),
            ));
            named.extend(own_groups(&interface.security_group_ids, &field));
        }
        named.extend(own_groups(&request.security_group_ids, ""));
        account.check(&self.context, named).await?;
        let launch = Self::launch_request(account.owner()?, request)?;
        let instances = self.instances.clone();
        let views = carried_through(async move { instances.run(launch).await }).await?;
        let instances = views.into_iter().map(convert::instance).collect();
        Ok(Response::new(v1::RunInstancesResponse { instances }))
    }

    async fn describe_instances(
        &self,
        request: Request<v1::DescribeInstancesRequest>,
    ) -> Result<Response<v1::DescribeInstancesResponse>, Status> {
        let account = Account::of(&request)?;
        let v1::DescribeInstancesRequest {
            instance_ids,
            filters,
            page,
        } = request.into_inner();
        let query = super::query::<Listed>(account, &instance_ids, "instance_ids", filters, page)?;
        let page = self.instances.describe(query).await?;
        Ok(Response::new(v1::DescribeInstancesResponse {
            instances: page.objects.into_iter().map(convert::instance).collect(),
            next_token: page.next_token,
        }))
    }

    async fn start_instances(
        &self,
        request: Request<v1::StartInstancesRequest>,
    ) -> Result<Response<v1::StartInstancesResponse>, Status> {
        let account = Account::of(&request)?;
        let ids = request.into_inner().instance_ids;
        let changes = convert::changes(
            self.ask(&account, &ids, Asked::Start, STOP_PATIENCE)
                .await?,
        );
        Ok(Response::new(v1::StartInstancesResponse { changes }))
    }

    async fn stop_instances(
        &self,
        request: Request<v1::StopInstancesRequest>,
    ) -> Result<Response<v1::StopInstancesResponse>, Status> {
        let account = Account::of(&request)?;
        let request = request.into_inner();
        let patience = convert::stop_patience(request.timeout_seconds, "timeout_seconds")?;
        let asked = Asked::Stop {
            force: request.force,
        };
        let changes = convert::changes(
            self.ask(&account, &request.instance_ids, asked, patience)
                .await?,
        );
        Ok(Response::new(v1::StopInstancesResponse { changes }))
    }

    async fn reboot_instances(
        &self,
        request: Request<v1::RebootInstancesRequest>,
    ) -> Result<Response<v1::RebootInstancesResponse>, Status> {
        let account = Account::of(&request)?;
        let ids = request.into_inner().instance_ids;
        self.ask(&account, &ids, Asked::Reboot, STOP_PATIENCE)
            .await?;
        Ok(Response::new(v1::RebootInstancesResponse {}))
    }

    async fn terminate_instances(
        &self,
        request: Request<v1::TerminateInstancesRequest>,
    ) -> Result<Response<v1::TerminateInstancesResponse>, Status> {
        let account = Account::of(&request)?;
        let ids = request.into_inner().instance_ids;
        let changes = convert::changes(
            self.ask(&account, &ids, Asked::Terminate, STOP_PATIENCE)
                .await?,
        );
        Ok(Response::new(v1::TerminateInstancesResponse { changes }))
    }

    async fn get_console_output(
        &self,
        request: Request<v1::GetConsoleOutputRequest>,
    ) -> Result<Response<v1::GetConsoleOutputResponse>, Status> {
        let account = Account::of(&request)?;
        let id = request.into_inner().instance_id;
        let named = Named::own(Kind::Instance, &id, "instance_id");
        account.check(&self.context, vec![named]).await?;
        let instance = self.instances.get(&id).await?;
        let output = output::tail(&self.context, &instance.id).await?;
        Ok(Response::new(v1::GetConsoleOutputResponse {
            instance_id: instance.id,
            output,
        }))
    }

    type ConsoleStream = ReceiverStream<Result<v1::ConsoleOutput, Status>>;

    async fn console(
        &self,
        request: Request<Streaming<v1::ConsoleInput>>,
    ) -> Result<Response<Self::ConsoleStream>, Status> {
        let account = Account::of(&request)?;
        let mut input = request.into_inner();
        let open = match input.message().await?.and_then(|message| message.input) {
            Some(v1::console_input::Input::Open(open)) => open,
            _ => {
                return Err(ApiError::field(
                    Reason::MissingParameter,
                    "open",
                    "the first message must say which console to open",
                )
                .into());
            }
        };
        let named = Named::own(Kind::Instance, &open.instance_id, "instance_id");
        account.check(&self.context, vec![named]).await?;
        let instance = self.instances.get(&open.instance_id).await?;
        let no_console = || {
            let word = instance.state.word();
            ApiError::field(
                Reason::IncorrectInstanceState,
                "open.instance_id",
                format!("{} is {word}: it has no console", instance.id),
            )
            .with("state", word)
        };
        if !matches!(
            instance.state,
            InstanceState::Pending | InstanceState::Running | InstanceState::Stopping
        ) {
            return Err(no_console().into());
        }
        let live = self.instances.live(&instance.id).ok_or_else(no_console)?;
        let (typing, typed) = mpsc::channel(WAITING);
        let (written, mut output) = mpsc::channel(WAITING);
        tokio::spawn(async move {
            loop {
                let message = tokio::select! {
                    message = input.message() => message,
                    // The session is over. A caller that keeps its own half open would keep the
                    // call open, and the agent from ending at once.
                    () = typing.closed() => return,
                };
                let Ok(Some(message)) = message else { return };
                // Whatever else comes is not typing; a later `open` has no meaning.
                if let Some(v1::console_input::Input::Data(data)) = message.input
                    && typing.send(data).await.is_err()
                {
                    return;
                }
            }
        });
        let session = Session {
            run_dir: self.context.settings.run_dir(&instance.id),
            instance_id: instance.id,
            live,
            typed,
            written,
        };
        let (sender, receiver) = mpsc::channel(WAITING);
        let mut shutdown = self.context.shutdown.clone();
        tokio::spawn(async move {
            let session = tokio::spawn(session.run(open.replay));
            loop {
                let data = tokio::select! {
                    data = output.recv() => data,
                    () = sender.closed() => return,
                    () = shutdown.wait() => {
                        let ending = ApiError::new(Reason::Unavailable, "hearthd is ending");
                        let _ = sender.send(Err(ending.into())).await;
                        return;
                    }
                };
                match data {
                    Some(data) => {
                        if sender.send(Ok(v1::ConsoleOutput { data })).await.is_err() {
                            return;
                        }
                    }
                    None => break,
                }
            }
            let end = session
                .await
                .map_err(|error| ApiError::internal("serving a console", error));
            if let Err(error) = end.and_then(|end| end) {
                let _ = sender.send(Err(error.into())).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn modify_instance_metadata_options(
        &self,
        request: Request<v1::ModifyInstanceMetadataOptionsRequest>,
    ) -> Result<Response<v1::ModifyInstanceMetadataOptionsResponse>, Status> {
        let account = Account::of(&request)?;
        let request = request.into_inner();
        let named = Named::own(Kind::Instance, &request.instance_id, "instance_id");
        account.check(&self.context, vec![named]).await?;
        let wanted = request.metadata_options.unwrap_or_default();
        let options = metadata_options::modify(&self.context, request.instance_id, wanted).await?;
        Ok(Response::new(v1::ModifyInstanceMetadataOptionsResponse {
            metadata_options: Some((&options).into()),
        }))
    }

    type ForwardPortStream = forward_port::Answers;

    async fn forward_port(
        &self,
        request: Request<Streaming<v1::ForwardPortInput>>,
    ) -> Result<Response<Self::ForwardPortStream>, Status> {
        Ok(Response::new(
            forward_port::forward_port(&self.context, request).await?,
        ))
    }

    async fn describe_instance_types(
        &self,
        _request: Request<v1::DescribeInstanceTypesRequest>,
    ) -> Result<Response<v1::DescribeInstanceTypesResponse>, Status> {
        let instance_types = self
            .context
            .types
            .all()
            .iter()
            .map(|shape| v1::InstanceType {
                name: shape.name.clone(),
                vcpus: shape.vcpus,
                memory_mib: shape.memory_mib,
                max_disk_iops: shape.disk_iops.unwrap_or(0),
                max_disk_throughput_mib: shape.disk_throughput_mib.unwrap_or(0),
                network_bandwidth_mbps: shape.network_bandwidth_mbps.unwrap_or(0),
                network_burst_mbps: shape.network_burst_mbps.unwrap_or(0),
            })
            .collect();
        Ok(Response::new(v1::DescribeInstanceTypesResponse {
            instance_types,
        }))
    }
}

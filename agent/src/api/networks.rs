//! `NetworkService`.

use std::sync::Arc;

use hearth_proto::v1::{self, network_service_server::NetworkService};
use tonic::{Request, Response, Status};

use super::convert;
use crate::{
    accounts::Account,
    context::Context,
    networks::{
        create::{self, CreateRequest},
        describe,
        model::{Interface, Network},
    },
    tokens::ClientToken,
};

/// The service.
pub struct NetworkApi {
    pub context: Arc<Context>,
}

#[tonic::async_trait]
impl NetworkService for NetworkApi {
    async fn create_network(
        &self,
        request: Request<v1::CreateNetworkRequest>,
    ) -> Result<Response<v1::CreateNetworkResponse>, Status> {
        let owner = Account::of(&request)?.owner()?;
        let request = request.into_inner();
        let token = &request.client_token;
        let token = ClientToken::of(&owner, create::CREATE, token, "client_token", &request)?;
        let request = CreateRequest {
            owner,
            ipv4_range: request.ipv4_range,
            ipv6_range: request.ipv6_range,
            name: request.name,
            mtu: request.mtu,
            nat: request.nat.unwrap_or(true),
            is_default: request.is_default,
            dns_domain: request.dns_domain,
            tags: convert::tags_in(request.tags),
            client_token: request.client_token,
            token,
            dry_run: request.dry_run,
        };
        let network = create::create(self.context.clone(), request).await?;
        let view = describe::network(&self.context, network).await?;
        Ok(Response::new(v1::CreateNetworkResponse {
            network: Some(convert::network(view)),
        }))
    }

    async fn describe_networks(
        &self,
        request: Request<v1::DescribeNetworksRequest>,
    ) -> Result<Response<v1::DescribeNetworksResponse>, Status> {
        let account = Account::of(&request)?;
        let v1::DescribeNetworksRequest {
            network_ids,
            filters,
            page,
        } = request.into_inner();
        let query = super::query::<Network>(account, &network_ids, "network_ids", filters, page)?;
        let page = describe::networks(&self.context, query).await?;
        Ok(Response::new(v1::DescribeNetworksResponse {
            networks: page.objects.into_iter().map(convert::network).collect(),
            next_token: page.next_token,
        }))
    }

    async fn describe_network_interfaces(
        &self,
        request: Request<v1::DescribeNetworkInterfacesRequest>,
    ) -> Result<Response<v1::DescribeNetworkInterfacesResponse>, Status> {
        let account = Account::of(&request)?;
        let v1::DescribeNetworkInterfacesRequest {
            network_interface_ids: ids,
            filters,
            page,
        } = request.into_inner();
        let field = "network_interface_ids";
        let query = super::query::<Interface>(account, &ids, field, filters, page)?;
        let page = describe::interfaces(&self.context, query).await?;
        Ok(Response::new(v1::DescribeNetworkInterfacesResponse {
            network_interfaces: page.objects.into_iter().map(convert::interface).collect(),
            next_token: page.next_token,
        }))
    }

    async fn modify_network(
        &self,
        _request: Request<v1::ModifyNetworkRequest>,
    ) -> Result<Response<v1::ModifyNetworkResponse>, Status> {
        Err(Status::unimplemented("being built"))
    }

    async fn delete_network(
        &self,
        _request: Request<v1::DeleteNetworkRequest>,
    ) -> Result<Response<v1::DeleteNetworkResponse>, Status> {
        Err(Status::unimplemented("being built"))
    }

    async fn modify_network_interface(
        &self,
        _request: Request<v1::ModifyNetworkInterfaceRequest>,
    ) -> Result<Response<v1::ModifyNetworkInterfaceResponse>, Status> {
        Err(Status::unimplemented("being built"))
    }

    async fn create_address_pool(
        &self,
        _request: Request<v1::CreateAddressPoolRequest>,
    ) -> Result<Response<v1::CreateAddressPoolResponse>, Status> {
        Err(Status::unimplemented("being built"))
    }

    async fn describe_address_pools(
        &self,
        _request: Request<v1::DescribeAddressPoolsRequest>,
    ) -> Result<Response<v1::DescribeAddressPoolsResponse>, Status> {
        Err(Status::unimplemented("being built"))
    }

    async fn delete_address_pool(
        &self,
        _request: Request<v1::DeleteAddressPoolRequest>,
    ) -> Result<Response<v1::DeleteAddressPoolResponse>, Status> {
        Err(Status::unimplemented("being built"))
    }

    async fn allocate_address(
        &self,
        _request: Request<v1::AllocateAddressRequest>,
    ) -> Result<Response<v1::AllocateAddressResponse>, Status> {
        Err(Status::unimplemented("being built"))
    }

    async fn describe_addresses(
        &self,
        _request: Request<v1::DescribeAddressesRequest>,
    ) -> Result<Response<v1::DescribeAddressesResponse>, Status> {
        Err(Status::unimplemented("being built"))
    }

    async fn associate_address(
        &self,
        _request: Request<v1::AssociateAddressRequest>,
    ) -> Result<Response<v1::AssociateAddressResponse>, Status> {
        Err(Status::unimplemented("being built"))
    }

    async fn disassociate_address(
        &self,
        _request: Request<v1::DisassociateAddressRequest>,
    ) -> Result<Response<v1::DisassociateAddressResponse>, Status> {
        Err(Status::unimplemented("being built"))
    }

    async fn release_address(
        &self,
        _request: Request<v1::ReleaseAddressRequest>,
    ) -> Result<Response<v1::ReleaseAddressResponse>, Status> {
        Err(Status::unimplemented("being built"))
    }

    async fn create_port_forward(
        &self,
        _request: Request<v1::CreatePortForwardRequest>,
    ) -> Result<Response<v1::CreatePortForwardResponse>, Status> {
        Err(Status::unimplemented("being built"))
    }

    async fn describe_port_forwards(
        &self,
        _request: Request<v1::DescribePortForwardsRequest>,
    ) -> Result<Response<v1::DescribePortForwardsResponse>, Status> {
        Err(Status::unimplemented("being built"))
    }

    async fn delete_port_forward(
        &self,
        _request: Request<v1::DeletePortForwardRequest>,
    ) -> Result<Response<v1::DeletePortForwardResponse>, Status> {
        Err(Status::unimplemented("being built"))
    }
}

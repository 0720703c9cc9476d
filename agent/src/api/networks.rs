//! `NetworkService`.

use std::sync::Arc;

use hearth_proto::v1::{self, network_service_server::NetworkService};
use tonic::{Request, Response, Status};

use super::{convert, convert_security_group};
use crate::{
    accounts::{Account, Named},
    context::Context,
    ids::Kind,
    networks::{
        addresses,
        create::{self, CreateRequest},
        describe, forwards, interfaces,
        model::{Address, AddressPool, Interface, Network, PortForward},
        modify, pools,
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
        request: Request<v1::ModifyNetworkRequest>,
    ) -> Result<Response<v1::ModifyNetworkResponse>, Status> {
        let account = Account::of(&request)?;
        let request = request.into_inner();
        let named = Named::own(Kind::Network, &request.network_id, "network_id");
        account.check(&self.context, vec![named]).await?;
        let request = modify::ModifyRequest {
            network_id: request.network_id,
            name: request.name,
            nat: request.nat,
            is_default: request.is_default,
            dns_domain: request.dns_domain,
        };
        let network = modify::modify(self.context.clone(), request).await?;
        let view = describe::network(&self.context, network).await?;
        Ok(Response::new(v1::ModifyNetworkResponse {
            network: Some(convert::network(view)),
        }))
    }

    async fn delete_network(
        &self,
        request: Request<v1::DeleteNetworkRequest>,
    ) -> Result<Response<v1::DeleteNetworkResponse>, Status> {
        let account = Account::of(&request)?;
        let id = request.into_inner().network_id;
        let named = Named::own(Kind::Network, &id, "network_id");
        account.check(&self.context, vec![named]).await?;
        modify::delete(self.context.clone(), id).await?;
        Ok(Response::new(v1::DeleteNetworkResponse {}))
    }

    async fn modify_network_interface(
        &self,
        request: Request<v1::ModifyNetworkInterfaceRequest>,
    ) -> Result<Response<v1::ModifyNetworkInterfaceResponse>, Status> {
        let account = Account::of(&request)?;
        let request = request.into_inner();
        let id = request.network_interface_id;
        let named = Named::own(Kind::NetworkInterface, &id, "network_interface_id");
        account.check(&self.context, vec![named]).await?;
        let modify = interfaces::ModifyRequest {
            interface_id: id.clone(),
            description: request.description,
            groups: request.security_group_ids,
            connections: convert_security_group::connections(request.keep_connections),
        };
        interfaces::modify(self.context.clone(), modify).await?;
        let view = describe::interface(&self.context, &id).await?;
        Ok(Response::new(v1::ModifyNetworkInterfaceResponse {
            network_interface: Some(convert::interface(view)),
        }))
    }

    async fn create_address_pool(
        &self,
        request: Request<v1::CreateAddressPoolRequest>,
    ) -> Result<Response<v1::CreateAddressPoolResponse>, Status> {
        Account::of(&request)?;
        let v1::CreateAddressPoolRequest {
            ipv4_range,
            description,
        } = request.into_inner();
        let view = pools::create(self.context.clone(), ipv4_range, description).await?;
        Ok(Response::new(v1::CreateAddressPoolResponse {
            pool: Some(convert::pool(view)),
        }))
    }

    async fn describe_address_pools(
        &self,
        request: Request<v1::DescribeAddressPoolsRequest>,
    ) -> Result<Response<v1::DescribeAddressPoolsResponse>, Status> {
        let account = Account::of(&request)?;
        let v1::DescribeAddressPoolsRequest { pool_ids, page } = request.into_inner();
        let (field, filters) = ("pool_ids", Vec::new());
        let query = super::query::<AddressPool>(account, &pool_ids, field, filters, page)?;
        let page = pools::describe(&self.context, query).await?;
        Ok(Response::new(v1::DescribeAddressPoolsResponse {
            pools: page.objects.into_iter().map(convert::pool).collect(),
            next_token: page.next_token,
        }))
    }

    async fn delete_address_pool(
        &self,
        request: Request<v1::DeleteAddressPoolRequest>,
    ) -> Result<Response<v1::DeleteAddressPoolResponse>, Status> {
        Account::of(&request)?;
        let id = request.into_inner().pool_id;
        pools::delete(self.context.clone(), id).await?;
        Ok(Response::new(v1::DeleteAddressPoolResponse {}))
    }

    async fn allocate_address(
        &self,
        request: Request<v1::AllocateAddressRequest>,
    ) -> Result<Response<v1::AllocateAddressResponse>, Status> {
        let owner = Account::of(&request)?.owner()?;
        let request = request.into_inner();
        let (token, operation) = (&request.client_token, addresses::ALLOCATE);
        let token = ClientToken::of(&owner, operation, token, "client_token", &request)?;
        let request = addresses::AllocateRequest {
            owner,
            pool_id: request.pool_id,
            public_ipv4: request.public_ipv4,
            tags: convert::tags_in(request.tags),
            client_token: request.client_token,
            token,
        };
        let address = addresses::allocate(self.context.clone(), request).await?;
        Ok(Response::new(v1::AllocateAddressResponse {
            address: Some(convert::address(address)),
        }))
    }

    async fn describe_addresses(
        &self,
        request: Request<v1::DescribeAddressesRequest>,
    ) -> Result<Response<v1::DescribeAddressesResponse>, Status> {
        let account = Account::of(&request)?;
        let v1::DescribeAddressesRequest {
            allocation_ids: ids,
            filters,
            page,
        } = request.into_inner();
        let query = super::query::<Address>(account, &ids, "allocation_ids", filters, page)?;
        let page = addresses::describe(&self.context, query).await?;
        Ok(Response::new(v1::DescribeAddressesResponse {
            addresses: page.objects.into_iter().map(convert::address).collect(),
            next_token: page.next_token,
        }))
    }

    async fn associate_address(
        &self,
        request: Request<v1::AssociateAddressRequest>,
    ) -> Result<Response<v1::AssociateAddressResponse>, Status> {
        let account = Account::of(&request)?;
        let request = request.into_inner();
        let mut named = own_interface(&request.network_interface_id, &request.instance_id);
        let id = &request.allocation_id;
        named.push(Named::own(Kind::Address, id, "allocation_id"));
        account.check(&self.context, named).await?;
        let request = addresses::AssociateRequest {
            allocation_id: request.allocation_id,
            interface_id: request.network_interface_id,
            instance_id: request.instance_id,
            allow_reassociation: request.allow_reassociation,
        };
        let address = addresses::associate(self.context.clone(), request).await?;
        Ok(Response::new(v1::AssociateAddressResponse {
            address: Some(convert::address(address)),
        }))
    }

    async fn disassociate_address(
        &self,
        request: Request<v1::DisassociateAddressRequest>,
    ) -> Result<Response<v1::DisassociateAddressResponse>, Status> {
        let account = Account::of(&request)?;
        let id = request.into_inner().allocation_id;
        let named = Named::own(Kind::Address, &id, "allocation_id");
        account.check(&self.context, vec![named]).await?;
        addresses::disassociate(self.context.clone(), id).await?;
        Ok(Response::new(v1::DisassociateAddressResponse {}))
    }

    async fn release_address(
        &self,
        request: Request<v1::ReleaseAddressRequest>,
    ) -> Result<Response<v1::ReleaseAddressResponse>, Status> {
        let account = Account::of(&request)?;
        let id = request.into_inner().allocation_id;
        let named = Named::own(Kind::Address, &id, "allocation_id");
        account.check(&self.context, vec![named]).await?;
        addresses::release(self.context.clone(), id).await?;
        Ok(Response::new(v1::ReleaseAddressResponse {}))
    }

    async fn create_port_forward(
        &self,
        request: Request<v1::CreatePortForwardRequest>,
    ) -> Result<Response<v1::CreatePortForwardResponse>, Status> {
        let account = Account::of(&request)?;
        let owner = account.owner()?;
        let request = request.into_inner();
        let named = own_interface(&request.network_interface_id, &request.instance_id);
        account.check(&self.context, named).await?;
        let (token, operation) = (&request.client_token, forwards::CREATE);
        let token = ClientToken::of(&owner, operation, token, "client_token", &request)?;
        let request = forwards::CreateRequest {
            owner,
            protocol: request.protocol,
            host_port: request.host_port,
            interface_id: request.network_interface_id,
            instance_id: request.instance_id,
            instance_port: request.instance_port,
            description: request.description,
            client_token: request.client_token,
            token,
        };
        let forward = forwards::create(self.context.clone(), request).await?;
        Ok(Response::new(v1::CreatePortForwardResponse {
            port_forward: Some(convert::port_forward(forward)),
        }))
    }

    async fn describe_port_forwards(
        &self,
        request: Request<v1::DescribePortForwardsRequest>,
    ) -> Result<Response<v1::DescribePortForwardsResponse>, Status> {
        let account = Account::of(&request)?;
        let v1::DescribePortForwardsRequest {
            port_forward_ids: ids,
            filters,
            page,
        } = request.into_inner();
        let query = super::query::<PortForward>(account, &ids, "port_forward_ids", filters, page)?;
        let page = forwards::describe(&self.context, query).await?;
        let forwards = page.objects.into_iter().map(convert::port_forward);
        Ok(Response::new(v1::DescribePortForwardsResponse {
            port_forwards: forwards.collect(),
            next_token: page.next_token,
        }))
    }

    async fn delete_port_forward(
        &self,
        request: Request<v1::DeletePortForwardRequest>,
    ) -> Result<Response<v1::DeletePortForwardResponse>, Status> {
        let account = Account::of(&request)?;
        let id = request.into_inner().port_forward_id;
        let named = Named::own(Kind::PortForward, &id, "port_forward_id");
        account.check(&self.context, vec![named]).await?;
        forwards::delete(self.context.clone(), id).await?;
        Ok(Response::new(v1::DeletePortForwardResponse {}))
    }
}

/// An interface of the caller's own, by itself or by its instance.
fn own_interface(interface_id: &str, instance_id: &str) -> Vec<Named> {
    let interface = "network_interface_id";
    vec![
        Named::own(Kind::NetworkInterface, interface_id, interface),
        Named::own(Kind::Instance, instance_id, "instance_id"),
    ]
}

//! `SecurityGroupService`.

use std::sync::Arc;

use hearth_proto::v1::{self, security_group_service_server::SecurityGroupService};
use tonic::{Request, Response, Status};

use super::{convert, convert_security_group as wire};
use crate::{
    accounts::{Account, Named},
    context::Context,
    error::ApiResult,
    ids::Kind,
    security_groups::{
        self,
        authorize::{self, AuthorizeRequest},
        create, delete,
        explain::{self, ExplainRequest},
        membership,
        model::{Rule, SecurityGroup},
        prefix_lists::{self, model::PrefixList},
        revoke::{self, RevokeRequest},
    },
    tokens::ClientToken,
};

/// The service.
pub struct SecurityGroupApi {
    pub context: Arc<Context>,
}

impl SecurityGroupApi {
    async fn own(&self, account: &Account, kind: Kind, id: &str, field: &str) -> ApiResult<()> {
        let named = Named::own(kind, id, field);
        account.check(&self.context, vec![named]).await
    }

    async fn own_group(&self, account: &Account, id: &str) -> ApiResult<()> {
        self.own(account, Kind::SecurityGroup, id, "security_group_id")
            .await
    }
}

#[tonic::async_trait]
impl SecurityGroupService for SecurityGroupApi {
    async fn create_security_group(
        &self,
        request: Request<v1::CreateSecurityGroupRequest>,
    ) -> Result<Response<v1::CreateSecurityGroupResponse>, Status> {
        let account = Account::of(&request)?;
        let owner = account.owner()?;
        let request = request.into_inner();
        let token = &request.client_token;
        let token = ClientToken::of(&owner, create::CREATE, token, "client_token", &request)?;
        let request = create::CreateRequest {
            owner,
            name: request.name,
            description: request.description,
            network_id: request.network_id,
            tags: convert::tags_in(request.tags),
            client_token: request.client_token,
            token,
            dry_run: request.dry_run,
        };
        let group = create::create(self.context.clone(), request).await?;
        Ok(Response::new(v1::CreateSecurityGroupResponse {
            security_group: Some(wire::group(group)),
        }))
    }

    async fn describe_security_groups(
        &self,
        request: Request<v1::DescribeSecurityGroupsRequest>,
    ) -> Result<Response<v1::DescribeSecurityGroupsResponse>, Status> {
        let account = Account::of(&request)?;
        let v1::DescribeSecurityGroupsRequest {
            security_group_ids: ids,
            filters,
            page,
        } = request.into_inner();
        let field = "security_group_ids";
        let query = super::query::<SecurityGroup>(account, &ids, field, filters, page)?;
        let page = security_groups::describe(&self.context, query).await?;
        Ok(Response::new(v1::DescribeSecurityGroupsResponse {
            security_groups: page.objects.into_iter().map(wire::group).collect(),
            next_token: page.next_token,
        }))
    }

    async fn delete_security_group(
        &self,
        request: Request<v1::DeleteSecurityGroupRequest>,
    ) -> Result<Response<v1::DeleteSecurityGroupResponse>, Status> {
        let account = Account::of(&request)?;
        let id = request.into_inner().security_group_id;
        self.own_group(&account, &id).await?;
        delete::delete(self.context.clone(), id).await?;
        Ok(Response::new(v1::DeleteSecurityGroupResponse {}))
    }

    async fn authorize_security_group(
        &self,
        request: Request<v1::AuthorizeSecurityGroupRequest>,
    ) -> Result<Response<v1::AuthorizeSecurityGroupResponse>, Status> {
        let account = Account::of(&request)?;
        let request = request.into_inner();
        self.own_group(&account, &request.security_group_id).await?;
        let request = AuthorizeRequest {
            group_id: request.security_group_id,
            direction: wire::direction_given(request.direction, "direction")?,
            permissions: wire::permissions(request.permissions),
            dry_run: request.dry_run,
        };
        let rules = authorize::authorize(self.context.clone(), request).await?;
        Ok(Response::new(v1::AuthorizeSecurityGroupResponse {
            rules: rules.into_iter().map(|it| wire::rule(it, (0, 0))).collect(),
        }))
    }

    async fn revoke_security_group(
        &self,
        request: Request<v1::RevokeSecurityGroupRequest>,
    ) -> Result<Response<v1::RevokeSecurityGroupResponse>, Status> {
        let account = Account::of(&request)?;
        let request = request.into_inner();
        self.own_group(&account, &request.security_group_id).await?;
        let request = RevokeRequest {
            group_id: request.security_group_id,
            direction: wire::direction(request.direction, "direction")?,
            rule_ids: request.rule_ids,
            permissions: wire::permissions(request.permissions),
            connections: wire::connections(request.keep_connections),
            dry_run: request.dry_run,
        };
        let applied = revoke::revoke(self.context.clone(), request).await?;
        Ok(Response::new(v1::RevokeSecurityGroupResponse {
            connections_cut: applied.cut,
        }))
    }

    async fn describe_security_group_rules(
        &self,
        request: Request<v1::DescribeSecurityGroupRulesRequest>,
    ) -> Result<Response<v1::DescribeSecurityGroupRulesResponse>, Status> {
        let account = Account::of(&request)?;
        let v1::DescribeSecurityGroupRulesRequest {
            rule_ids,
            filters,
            page,
        } = request.into_inner();
        let query = super::query::<Rule>(account, &rule_ids, "rule_ids", filters, page)?;
        let page = security_groups::describe_rules(&self.context, query).await?;
        let rules = page.objects.into_iter();
        Ok(Response::new(v1::DescribeSecurityGroupRulesResponse {
            rules: rules.map(|it| wire::rule(it, (0, 0))).collect(),
            next_token: page.next_token,
        }))
    }

    async fn replace_instance_security_groups(
        &self,
        request: Request<v1::ReplaceInstanceSecurityGroupsRequest>,
    ) -> Result<Response<v1::ReplaceInstanceSecurityGroupsResponse>, Status> {
        let account = Account::of(&request)?;
        let request = request.into_inner();
        let groups = request.security_group_ids;
        let instance = Named::own(Kind::Instance, &request.instance_id, "instance_id");
        let named = groups.iter().enumerate().map(|(index, id)| {
            Named::own(
                Kind::SecurityGroup,
                id,
                format!("security_group_ids[{index}]"),
            )
        });
        let named = named.chain([instance]).collect();
        account.check(&self.context, named).await?;
        let applied = membership::replace_of_instance(
            self.context.clone(),
            request.instance_id,
            groups,
            wire::connections(request.keep_connections),
        )
        .await?;
        Ok(Response::new(v1::ReplaceInstanceSecurityGroupsResponse {
            connections_cut: applied.cut,
        }))
    }

    async fn explain_traffic(
        &self,
        request: Request<v1::ExplainTrafficRequest>,
    ) -> Result<Response<v1::ExplainTrafficResponse>, Status> {
        let account = Account::of(&request)?;
        let request = request.into_inner();
        let request = ExplainRequest {
            from: request.from,
            to: request.to,
            protocol: request.protocol,
            port: request.port,
            code: request.code,
            source_port: request.source_port,
        };
        let explained = explain::explain_traffic(&self.context, &account, request).await?;
        let steps = explained.steps.into_iter().map(|step| v1::TrafficStep {
            point: step.point,
            passes: step.passes,
            rule: step.rule.map(|it| wire::rule(it, (0, 0))),
            reason: step.reason,
        });
        Ok(Response::new(v1::ExplainTrafficResponse {
            allowed: explained.allowed,
            steps: steps.collect(),
        }))
    }

    async fn create_prefix_list(
        &self,
        request: Request<v1::CreatePrefixListRequest>,
    ) -> Result<Response<v1::CreatePrefixListResponse>, Status> {
        let account = Account::of(&request)?;
        let owner = account.owner()?;
        let request = request.into_inner();
        let token = &request.client_token;
        let token = ClientToken::of(
            &owner,
            prefix_lists::CREATE,
            token,
            "client_token",
            &request,
        )?;
        let request = prefix_lists::CreateRequest {
            owner,
            name: request.name,
            family: request.address_family,
            max_entries: request.max_entries,
            entries: wire::entries(request.entries),
            tags: convert::tags_in(request.tags),
            client_token: request.client_token,
            token,
        };
        let list = prefix_lists::create(self.context.clone(), request).await?;
        Ok(Response::new(v1::CreatePrefixListResponse {
            prefix_list: Some(wire::prefix_list(list)),
        }))
    }

    async fn describe_prefix_lists(
        &self,
        request: Request<v1::DescribePrefixListsRequest>,
    ) -> Result<Response<v1::DescribePrefixListsResponse>, Status> {
        let account = Account::of(&request)?;
        let v1::DescribePrefixListsRequest {
            prefix_list_ids: ids,
            filters,
            page,
        } = request.into_inner();
        let query = super::query::<PrefixList>(account, &ids, "prefix_list_ids", filters, page)?;
        let page = prefix_lists::describe(&self.context, query).await?;
        Ok(Response::new(v1::DescribePrefixListsResponse {
            prefix_lists: page.objects.into_iter().map(wire::prefix_list).collect(),
            next_token: page.next_token,
        }))
    }

    async fn modify_prefix_list(
        &self,
        request: Request<v1::ModifyPrefixListRequest>,
    ) -> Result<Response<v1::ModifyPrefixListResponse>, Status> {
        let account = Account::of(&request)?;
        let request = request.into_inner();
        let id = request.prefix_list_id;
        self.own(&account, Kind::PrefixList, &id, "prefix_list_id")
            .await?;
        let request = prefix_lists::ModifyRequest {
            id,
            current_version: request.current_version,
            add: wire::entries(request.add_entries),
            remove: request.remove_cidrs,
            name: request.name,
            connections: wire::connections(request.keep_connections),
        };
        let list = prefix_lists::modify(self.context.clone(), request).await?;
        Ok(Response::new(v1::ModifyPrefixListResponse {
            prefix_list: Some(wire::prefix_list(list)),
        }))
    }

    async fn delete_prefix_list(
        &self,
        request: Request<v1::DeletePrefixListRequest>,
    ) -> Result<Response<v1::DeletePrefixListResponse>, Status> {
        let account = Account::of(&request)?;
        let id = request.into_inner().prefix_list_id;
        self.own(&account, Kind::PrefixList, &id, "prefix_list_id")
            .await?;
        prefix_lists::delete(self.context.clone(), id).await?;
        Ok(Response::new(v1::DeletePrefixListResponse {}))
    }
}

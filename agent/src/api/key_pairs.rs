//! `KeyPairService`.

use std::sync::Arc;

use hearth_proto::v1::{self, key_pair_service_server::KeyPairService};
use tonic::{Request, Response, Status};

use super::convert;
use crate::{
    accounts::{Account, Named},
    context::Context,
    ids::Kind,
    keys::{self, KeyPair},
};

/// The service.
pub struct KeyPairApi {
    pub context: Arc<Context>,
}

fn wire(key: KeyPair) -> v1::KeyPair {
    v1::KeyPair {
        key_pair_id: key.id,
        owner_id: key.owner,
        key_name: key.name,
        key_type: key.key_type,
        fingerprint: key.fingerprint,
        public_key: key.public_key,
        create_time: Some(key.create_time.into()),
        tags: convert::tags_out(key.tags),
    }
}

#[tonic::async_trait]
impl KeyPairService for KeyPairApi {
    async fn create_key_pair(
        &self,
        request: Request<v1::CreateKeyPairRequest>,
    ) -> Result<Response<v1::CreateKeyPairResponse>, Status> {
        let owner = Account::of(&request)?.owner()?;
        let request = request.into_inner();
        let tags = convert::tags_in(request.tags);
        let made = keys::create(&self.context, owner, request.key_name, tags).await?;
        Ok(Response::new(v1::CreateKeyPairResponse {
            key_pair: Some(wire(made.key)),
            private_key: made.private_key,
        }))
    }

    async fn import_key_pair(
        &self,
        request: Request<v1::ImportKeyPairRequest>,
    ) -> Result<Response<v1::ImportKeyPairResponse>, Status> {
        let owner = Account::of(&request)?.owner()?;
        let request = request.into_inner();
        let tags = convert::tags_in(request.tags);
        let (name, public_key) = (request.key_name, request.public_key);
        let key = keys::import(&self.context, owner, name, &public_key, tags).await?;
        Ok(Response::new(v1::ImportKeyPairResponse {
            key_pair: Some(wire(key)),
        }))
    }

    async fn describe_key_pairs(
        &self,
        request: Request<v1::DescribeKeyPairsRequest>,
    ) -> Result<Response<v1::DescribeKeyPairsResponse>, Status> {
        let account = Account::of(&request)?;
        let v1::DescribeKeyPairsRequest {
            key_names,
            filters,
            page,
        } = request.into_inner();
        let owner = account.as_ref().to_owned();
        let page = keys::describe(&self.context, owner, key_names, move |ids| {
            super::query::<KeyPair>(account, &ids, "key_names", filters, page)
        })
        .await?;
        Ok(Response::new(v1::DescribeKeyPairsResponse {
            key_pairs: page.objects.into_iter().map(wire).collect(),
            next_token: page.next_token,
        }))
    }

    async fn delete_key_pair(
        &self,
        request: Request<v1::DeleteKeyPairRequest>,
    ) -> Result<Response<v1::DeleteKeyPairResponse>, Status> {
        let account = Account::of(&request)?;
        let request = request.into_inner();
        let named = Named::own(Kind::KeyPair, &request.key_pair_id, "key_pair_id");
        account.check(&self.context, vec![named]).await?;
        let owner = account.as_ref().to_owned();
        keys::delete(&self.context, owner, request.key_pair_id, request.key_name).await?;
        Ok(Response::new(v1::DeleteKeyPairResponse {}))
    }
}

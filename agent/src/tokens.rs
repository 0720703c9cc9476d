//! Client tokens: the same request with the same token makes its objects once.

use prost::Message;
use rusqlite::Connection;
use sha2::{Digest, Sha256};

use crate::{
    db::{self, Tx, tokens::TokenRow},
    error::{ApiError, ApiResult, Reason},
    ids::hex,
};

/// A call that may be repeated: which operation, with which token, asking what.
#[derive(Clone, Debug)]
pub struct ClientToken {
    owner: String,
    operation: &'static str,
    token: String,
    request_hash: String,
}

impl ClientToken {
    /// Reads the token of a request; `None` when it has none. `request` must be the whole
    /// request as it came.
    pub fn of(
        owner: &str,
        operation: &'static str,
        token: &str,
        field: &str,
        request: &impl Message,
    ) -> ApiResult<Option<Self>> {
        if token.is_empty() {
            return Ok(None);
        }
        if token.len() > 64 || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(ApiError::invalid(
                field,
                "a client token has 1 to 64 visible ASCII characters",
            ));
        }
        Ok(Some(Self {
            owner: owner.to_owned(),
            operation,
            token: token.to_owned(),
            request_hash: hex(&Sha256::digest(request.encode_to_vec())),
        }))
    }

    /// The ids that the first call with this token made, if there was one.
    ///
    /// # Errors
    /// `IdempotentParameterMismatch` when the first call asked for something else.
    pub fn earlier(&self, connection: &Connection) -> ApiResult<Option<Vec<String>>> {
        match db::tokens::get(connection, &self.owner, self.operation, &self.token)? {
            None => Ok(None),
            Some(row) if row.request_hash == self.request_hash => Ok(Some(row.result)),
            Some(_) => Err(ApiError::new(
                Reason::IdempotentParameterMismatch,
                format!(
                    "the client token {:?} was used with another {} request",
                    self.token, self.operation
                ),
            )),
        }
    }

    /// Keeps what the call makes, in the transaction that makes it.
    pub fn keep(&self, tx: &Tx<'_>, ids: &[String]) -> ApiResult<()> {
        let row = TokenRow {
            request_hash: self.request_hash.clone(),
            result: ids.to_vec(),
        };
        Ok(db::tokens::insert(
            tx,
            &self.owner,
            self.operation,
            &self.token,
            &row,
        )?)
    }
}

/// Forgets the token of an object whose making failed, so that the call may be tried again.
pub fn forget(tx: &Tx<'_>, owner: &str, operation: &'static str, token: &str) -> ApiResult<()> {
    if !token.is_empty() {
        db::tokens::remove(tx, owner, operation, token)?;
    }
    Ok(())
}

/// The same, if it was this object that the call made.
pub fn forget_of(
    tx: &Tx<'_>,
    owner: &str,
    operation: &'static str,
    token: &str,
    id: &str,
) -> ApiResult<()> {
    match db::tokens::get(tx, owner, operation, token)? {
        Some(row) if row.result == [id] => forget(tx, owner, operation, token),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use hearth_proto::v1::CreateVolumeRequest;

    use super::*;
    use crate::db::Db;

    fn token(size_gib: u64) -> ClientToken {
        let request = CreateVolumeRequest {
            size_gib,
            ..Default::default()
        };
        ClientToken::of("local", "CreateVolume", "abc", "client_token", &request)
            .expect("valid")
            .expect("some")
    }

    #[tokio::test]
    async fn a_token_gives_the_first_result_to_the_same_request_and_an_error_to_another() {
        let dir = tempfile::tempdir().expect("tempdir");
        let db = Db::open(&dir.path().join("db")).expect("open");
        let ids = vec!["vol-1".to_owned()];
        let kept = ids.clone();
        db.write(move |tx| token(1).keep(tx, &kept))
            .await
            .expect("keep");
        let same = db.read(|c| token(1).earlier(c)).await.expect("same");
        assert_eq!(same, Some(ids));
        let other = db.read(|c| token(2).earlier(c)).await.expect_err("other");
        assert_eq!(other.reason(), Reason::IdempotentParameterMismatch);
        db.write(|tx| forget(tx, "local", "CreateVolume", "abc"))
            .await
            .expect("forget");
        assert_eq!(
            db.read(|c| token(2).earlier(c)).await.expect("forgotten"),
            None
        );
    }

    #[test]
    fn tokens_that_are_too_long_or_invisible_are_refused() {
        let request = CreateVolumeRequest::default();
        for bad in ["x".repeat(65), "a b".to_owned(), "é".to_owned()] {
            let error = ClientToken::of("local", "CreateVolume", &bad, "client_token", &request)
                .expect_err("bad");
            assert_eq!(error.fields(), ["client_token"]);
        }
    }
}

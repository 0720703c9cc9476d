//! What a refused request has to say.

use std::fmt::Debug;

use anyhow::{Context, Result, ensure};
use tonic::{Code, Response, Status};
use tonic_types::StatusExt;

/// An error as the API promises it.
#[derive(Clone, Copy, Debug)]
pub struct Expect {
    /// The gRPC code.
    pub code: Code,
    /// EC2's name, in `ErrorInfo.reason`.
    pub reason: &'static str,
    /// The field that is at fault, in `BadRequest.field_violations`; none when empty.
    pub field: &'static str,
}

impl Expect {
    /// A field of the request that is wrong.
    pub fn invalid(reason: &'static str, field: &'static str) -> Self {
        Self {
            code: Code::InvalidArgument,
            reason,
            field,
        }
    }

    /// Checks an answer; gives the error's message.
    pub fn check<T: Debug>(self, answer: Result<Response<T>, Status>) -> Result<String> {
        let status = match answer {
            Ok(answer) => anyhow::bail!("worked, expected {self:?}: {:?}", answer.into_inner()),
            Err(status) => status,
        };
        self.check_status(&status)
    }

    /// Checks an error; gives its message.
    pub fn check_status(self, status: &Status) -> Result<String> {
        let said = || format!("expected {self:?}, got {status:?}");
        let details = status.get_error_details();
        let info = details.error_info().with_context(said)?;
        ensure!(status.code() == self.code, said());
        ensure!(
            info.reason == self.reason,
            "reason {}: {}",
            info.reason,
            said()
        );
        ensure!(
            info.domain == "hearth",
            "domain {}: {}",
            info.domain,
            said()
        );
        ensure!(!status.message().is_empty(), said());
        if !self.field.is_empty() {
            let bad = details.bad_request().with_context(said)?;
            let fields: Vec<_> = bad
                .field_violations
                .iter()
                .map(|v| v.field.as_str())
                .collect();
            ensure!(
                fields.contains(&self.field),
                "fields {fields:?}: {}",
                said()
            );
        }
        Ok(status.message().to_owned())
    }
}

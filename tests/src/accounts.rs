//! Calls in the name of an account.

use tonic::Request;

/// A request of this account.
pub fn as_account<T>(account: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let name = account.parse().expect("the name of an account");
    request.metadata_mut().insert("hearth-account", name);
    request
}

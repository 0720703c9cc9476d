//! Calling as another account.

use tonic::{Request, metadata::AsciiMetadataValue};

/// A request of this account.
///
/// # Panics
/// When the name could not be metadata at all.
pub fn of<T>(account: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let name = AsciiMetadataValue::try_from(account).expect("a visible name");
    request.metadata_mut().insert("hearth-account", name);
    request
}

//! The gRPC API of Hearth, generated from `hearth/v1/*.proto`.
//!
//! The `.proto` files are the documentation of the API; this crate holds no logic.

/// Package `hearth.v1`: messages, clients (`*_client`) and servers (`*_server`).
#[allow(missing_docs, clippy::all, clippy::unwrap_used)]
pub mod v1 {
    tonic::include_proto!("hearth.v1");
}

/// The encoded `FileDescriptorSet` of `hearth.v1`, for server reflection and for generic clients.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/hearth_v1.bin"));

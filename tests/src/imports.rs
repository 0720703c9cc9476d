//! The streams of the two imports.

use hearth_proto::v1::{
    ImportImageRequest, ImportVolumeHeader, ImportVolumeRequest, import_image_request,
    import_volume_request,
};

use crate::GuestImage;

/// What the API takes in one message at most, in bytes.
const PIECE: usize = 1 << 20;

/// The messages of a whole `ImportImage`.
pub fn image_stream(image: &GuestImage) -> Vec<ImportImageRequest> {
    use import_image_request::Message;
    let header = Message::Header(image.header.clone());
    let pieces = image.files.iter().flat_map(|file| file.chunks(PIECE));
    std::iter::once(header)
        .chain(pieces.map(|piece| Message::Data(piece.to_vec())))
        .map(|message| ImportImageRequest {
            message: Some(message),
        })
        .collect()
}

/// The messages of a whole `ImportVolume`.
pub fn volume_stream(header: ImportVolumeHeader, bytes: &[u8]) -> Vec<ImportVolumeRequest> {
    use import_volume_request::Message;
    std::iter::once(Message::Header(header))
        .chain(
            bytes
                .chunks(PIECE)
                .map(|piece| Message::Data(piece.to_vec())),
        )
        .map(|message| ImportVolumeRequest {
            message: Some(message),
        })
        .collect()
}

//! What an export sends, put together to a file.

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};
use hearth_proto::v1::{ExportHeader, ExportResponse, export_response::Message};
use tonic::{Response, Status, Streaming};

use crate::{guest_image::sha256_hex, programs::output_of};

/// A whole export.
#[derive(Debug)]
pub struct Exported {
    /// What was said before.
    pub header: ExportHeader,
    /// The file.
    pub path: PathBuf,
    /// How many bytes came as zeroes.
    pub zeroes: u64,
}

/// Takes an export in and puts it into a file; checks order, length and digest.
pub async fn receive(
    answer: Result<Response<Streaming<ExportResponse>>, Status>,
    path: PathBuf,
) -> Result<Exported> {
    let mut messages = answer?.into_inner();
    let first = messages.message().await?.and_then(|first| first.message);
    let Some(Message::Header(header)) = first else {
        bail!("not a header: {first:?}");
    };
    let (mut bytes, mut zeroes) = (Vec::new(), 0);
    let trailer = loop {
        let message = messages.message().await?.and_then(|next| next.message);
        match message.context("the stream ended without a trailer")? {
            Message::Data(data) => {
                ensure!(!data.is_empty() && data.len() <= 1 << 20, "{}", data.len());
                bytes.extend(data);
            }
            Message::Zeroes(length) => {
                zeroes += length;
                bytes.resize(bytes.len() + usize::try_from(length)?, 0);
            }
            Message::Trailer(trailer) => break trailer,
            Message::Header(_) => bail!("a second header"),
        }
    };
    ensure!(
        messages.message().await?.is_none(),
        "more after the trailer"
    );
    ensure!(bytes.len() as u64 == header.length_bytes, "{header:?}");
    ensure!(sha256_hex(&bytes) == trailer.sha256, "the digest is wrong");
    fs::write(&path, bytes)?;
    Ok(Exported {
        header,
        path,
        zeroes,
    })
}

impl Exported {
    /// For a qcow2 file: QEMU finds it in order, complete in itself, and the same as a raw file.
    pub fn holds(&self, raw: &Path) -> Result<()> {
        let mut check = Command::new("qemu-img");
        let said = output_of(check.args(["check", "-f", "qcow2"]).arg(&self.path))?;
        ensure!(said.contains("No errors were found"), "{said}");
        let mut info = Command::new("qemu-img");
        let said = output_of(info.arg("info").arg(&self.path))?;
        ensure!(!said.contains("backing"), "{said}");
        let mut compare = Command::new("qemu-img");
        compare.args(["compare", "-f", "qcow2", "-F", "raw"]);
        output_of(compare.arg(&self.path).arg(raw))?;
        Ok(())
    }

    /// For a raw file: the same bytes.
    pub fn is(&self, bytes: &[u8]) -> Result<()> {
        let mut file = fs::File::open(&self.path)?;
        let mut own = Vec::new();
        file.read_to_end(&mut own)?;
        ensure!(own == bytes, "other bytes than expected");
        Ok(())
    }
}

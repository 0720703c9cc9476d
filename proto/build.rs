//! Compiles `hearth/v1/*.proto` with protox, so that no `protoc` has to be installed.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message;

fn main() -> Result<(), Box<dyn Error>> {
    let files = [
        "common",
        "event",
        "flow_log",
        "image",
        "instance",
        "key_pair",
        "network",
        "security_group",
        "snapshot",
        "store",
        "volume",
    ]
    .map(|name| format!("hearth/v1/{name}.proto"));
    for file in &files {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(&files, ["."])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("hearth_v1.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}

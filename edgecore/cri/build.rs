//! Builds the CRI client from our own `.proto`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto/cri.proto");
    tonic_prost_build::configure()
        .build_server(false)
        .btree_map(".")
        .compile_protos(&["proto/cri.proto"], &["proto"])?;
    Ok(())
}

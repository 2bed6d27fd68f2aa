//! Compiles `proto/wire.proto`.

fn main() -> std::io::Result<()> {
    println!("cargo:rerun-if-changed=proto/wire.proto");
    prost_build::Config::new()
        .bytes(["."])
        .compile_protos(&["proto/wire.proto"], &["proto"])
}

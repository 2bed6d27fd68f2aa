//! installer.
fn main() {}

//! edgecore.
fn main() {}

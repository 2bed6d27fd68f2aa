//! cloudhub.
fn main() {}

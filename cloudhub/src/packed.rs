//! JSON that is kept as text: parsed it takes five to ten times as much memory, and what a hub keeps of thousands of edges it
//! looks at seldom.

use std::sync::Arc;

use serde_json::Value;

/// An object or a part of one; clones share it.
#[derive(Clone, PartialEq, Eq)]
pub struct Packed(Arc<[u8]>);

impl std::fmt::Debug for Packed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}

impl From<&Value> for Packed {
    fn from(value: &Value) -> Self {
        Self(value.to_string().into_bytes().into())
    }
}

impl Packed {
    /// The same, to be looked into.
    pub fn value(&self) -> Value {
        serde_json::from_slice(&self.0).expect("it was written from a value")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_packed_comes_out_as_it_was() {
        let value = json!({"b": [1, 2.5, null, {"x": "\u{1f980}\n"}], "a": true});
        let packed = Packed::from(&value);
        assert_eq!(packed.value(), value);
        assert_eq!(packed, Packed::from(&packed.value()), "the same text each time");
    }
}

//! The tables of types and fields that `build.rs` makes.

/// A component: a struct, or one of the few types with rules of their own.
#[derive(Debug)]
pub(crate) struct Type {
    /// `io.k8s.api.core.v1.Pod`.
    pub(crate) name: &'static str,
    /// [`Shape::Struct`], or what the type is instead.
    pub(crate) shape: Shape,
    /// Sorted by name.
    pub(crate) fields: &'static [Field],
}

/// A field of a struct.
#[derive(Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a fact of its own, as in the table that they come from"
)]
pub(crate) struct Field {
    /// As in JSON.
    pub(crate) name: &'static str,
    /// Its number in protobuf, after that of the struct that Go embeds it with, or 0; (0, 0): it has none.
    pub(super) number: (u16, u16),
    /// What its values are.
    pub(crate) shape: Shape,
    /// By which field of its items strategic merge patch merges the list; "" = none.
    pub(crate) merge_key: &'static str,
    /// Written also where it is empty (no `omitempty` in Go).
    pub(crate) written: bool,
    /// A pointer in Go: zero is a value.
    pub(crate) pointer: bool,
    /// A struct in Go and no pointer: always written.
    pub(crate) value: bool,
    /// Strategic merge patch merges the list.
    pub(crate) merge: bool,
    /// Strategic merge patch replaces the object.
    pub(crate) replace: bool,
}

/// What a value is.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Shape {
    /// A text.
    Text,
    /// True or false.
    Bool,
    /// A whole number.
    Int32,
    /// A whole number.
    Int64,
    /// Base64.
    Bytes,
    /// RFC 3339, whole seconds.
    Time,
    /// RFC 3339, microseconds.
    MicroTime,
    /// `resource.Quantity`.
    Quantity,
    /// `intstr.IntOrString`.
    IntOrString,
    /// Anything.
    Any,
    /// The fields of the [`Type`] that has this shape.
    Struct,
    /// Another type, by its number.
    Ref(usize),
    /// A list.
    List(&'static Shape),
    /// A map from texts.
    Map(&'static Shape),
}

/// Which type a body of a kind has.
struct Kind {
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    number: usize,
}

include!(concat!(env!("OUT_DIR"), "/types.rs"));

/// The type of a kind. Options and answers that all groups share (`DeleteOptions`) are found in every group.
pub(crate) fn find(api_version: &str, kind: &str) -> Option<&'static Type> {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let exact = |k: &&Kind| k.kind == kind && k.group == group && k.version == version;
    let shared = |k: &&Kind| k.kind == kind && matches!(kind, "DeleteOptions" | "Status");
    let found = KINDS.iter().find(exact).or_else(|| KINDS.iter().find(shared))?;
    Some(&TYPES[found.number])
}

/// All components, sorted by name.
pub(super) fn all() -> &'static [Type] {
    TYPES
}

impl Type {
    /// The field of that name.
    pub(crate) fn field(&self, name: &str) -> Option<&'static Field> {
        self.fields
            .binary_search_by(|f| f.name.cmp(name))
            .ok()
            .map(|i| &self.fields[i])
    }

    /// The type as Go prints it: `v1.PodSpec`.
    pub(super) fn go_name(&self) -> String {
        let mut parts = self.name.rsplit('.');
        let name = parts.next().unwrap_or_default();
        let package = parts.next().unwrap_or_default();
        format!("{package}.{name}")
    }

    /// The same without its package.
    pub(super) fn short_name(&self) -> &'static str {
        self.name.rsplit('.').next().unwrap_or_default()
    }
}

impl Shape {
    /// The type that it refers to.
    pub(crate) fn target(self) -> Option<&'static Type> {
        match self {
            Self::Ref(number) => Some(&TYPES[number]),
            _ => None,
        }
    }

    /// The shape behind a reference, where that is no struct.
    pub(crate) fn resolved(self) -> Self {
        match self.target() {
            Some(of) if !matches!(of.shape, Self::Struct) => of.shape,
            _ => self,
        }
    }

    /// The type as Go prints it.
    pub(super) fn go_name(self) -> String {
        match self {
            // Go reads times from texts of their own.
            Self::Text | Self::Time | Self::MicroTime => "string".into(),
            Self::Bool => "bool".into(),
            Self::Int32 => "int32".into(),
            Self::Int64 => "int64".into(),
            Self::Bytes => "[]uint8".into(),
            Self::Quantity => "resource.Quantity".into(),
            Self::IntOrString => "intstr.IntOrString".into(),
            Self::Any | Self::Struct => "interface {}".into(),
            Self::Ref(number) => TYPES[number].go_name(),
            Self::List(items) => format!("[]{}", items.go_name()),
            Self::Map(values) => format!("map[string]{}", values.go_name()),
        }
    }
}

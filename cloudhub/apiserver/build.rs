//! Makes, from k8s-openapi's schemas, `src/schema/facts.txt` and `src/schema/numbers.txt`, what the API server knows of its types:
//!
//! * `types.rs`: static tables of types and fields, for decoding and patching; they cost no heap
//! * `components.gz`: the OpenAPI v3 components with their descriptions, a line each: name, tab, JSON

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ListMeta;
use k8s_openapi::schemars::generate::{SchemaGenerator, SchemaSettings};
use k8s_openapi::schemars::{JsonSchema, Schema};
use k8s_openapi::{ListableResource, Resource};
use serde_json::{Map, Value, json};

const FACTS: &str = "src/schema/facts.txt";
const NUMBERS: &str = "src/schema/numbers.txt";
const REF: &str = "#/components/schemas/";
const LIST_TYPE_META: &str = "Which kind of list this is.";

fn main() {
    println!("cargo::rerun-if-changed={FACTS}");
    println!("cargo::rerun-if-changed={NUMBERS}");
    println!("cargo::rerun-if-changed=build.rs");
    let mut facts = Facts::parse(&std::fs::read_to_string(FACTS).expect("the table of facts is beside the sources"));
    let mut roots = Roots::new();
    roots.add_all();
    let Roots {
        mut generator,
        kinds,
        lists,
    } = roots;
    facts.add_lists(lists);
    let components: BTreeMap<String, Value> = generator.take_definitions(false).into_iter().collect();
    let components: BTreeMap<String, Value> = components
        .into_iter()
        .map(|(name, schema)| {
            let schema = publish(&name, schema, &facts, &kinds);
            (name, schema)
        })
        .collect();
    facts.check(&components);
    let numbers =
        Numbers::parse(&std::fs::read_to_string(NUMBERS).expect("the table of numbers is beside the sources"));
    numbers.check(&components);
    let out = std::env::var("OUT_DIR").expect("cargo sets it");
    write_components(&Path::new(&out).join("components.gz"), &components);
    let tables = tables(&components, (&facts, &numbers), &kinds);
    std::fs::write(Path::new(&out).join("types.rs"), tables).expect("OUT_DIR is writable");
}

/// A kind by which a body names its type.
struct Kind {
    group: String,
    version: String,
    kind: String,
    component: String,
}

/// The types that requests and answers are made of, and all that they are made of.
struct Roots {
    generator: SchemaGenerator,
    kinds: Vec<Kind>,
    lists: Vec<String>,
}

impl Roots {
    fn new() -> Self {
        let settings = SchemaSettings::openapi3().with(|s| s.transforms.clear());
        Self {
            generator: settings.into_generator(),
            kinds: Vec::new(),
            lists: Vec::new(),
        }
    }

    fn add<T: JsonSchema + Resource>(&mut self) {
        let _: Schema = self.generator.subschema_for::<T>();
        self.kinds.push(Kind {
            group: T::GROUP.into(),
            version: T::VERSION.into(),
            kind: T::KIND.into(),
            component: T::schema_name().into_owned(),
        });
    }

    /// A kind with its list. k8s-openapi's lists have no schema: theirs is the same for all.
    fn listed<T: JsonSchema + ListableResource>(&mut self) {
        self.add::<T>();
        let _: Schema = self.generator.subschema_for::<ListMeta>();
        let item = T::schema_name();
        let list = ["apiVersion", "kind"].map(|f| (f, json!({"type": "string", "description": LIST_TYPE_META})));
        let mut properties: Map<String, Value> = list.into_iter().map(|(f, s)| (f.to_owned(), s)).collect();
        let items = json!({"type": "array", "items": {"$ref": format!("{REF}{item}")}, "description": "The objects."});
        properties.insert("items".into(), items);
        let metadata = format!("{REF}{}", ListMeta::schema_name());
        properties.insert(
            "metadata".into(),
            json!({"$ref": metadata, "description": "Of the list as a whole."}),
        );
        let component = format!("{item}List");
        let schema = json!({
            "type": "object",
            "description": format!("A list of {} objects.", T::KIND),
            "required": ["items"],
            "properties": properties,
        });
        self.generator.definitions_mut().insert(component.clone(), schema);
        self.kinds.push(Kind {
            group: T::GROUP.into(),
            version: T::VERSION.into(),
            kind: T::LIST_KIND.into(),
            component: component.clone(),
        });
        self.lists.push(component);
    }

    fn add_all(&mut self) {
        self.add_stored();
        self.add_virtual();
    }

    fn add_stored(&mut self) {
        use k8s_openapi::api::{apps, coordination, core, discovery, events, node, policy, rbac, scheduling};
        self.listed::<core::v1::Namespace>();
        self.listed::<core::v1::Node>();
        self.listed::<core::v1::Pod>();
        self.listed::<core::v1::ConfigMap>();
        self.listed::<core::v1::Secret>();
        self.listed::<core::v1::Service>();
        self.listed::<core::v1::ServiceAccount>();
        self.listed::<core::v1::Event>();
        self.listed::<discovery::v1::EndpointSlice>();
        self.listed::<events::v1::Event>();
        self.listed::<coordination::v1::Lease>();
        self.listed::<scheduling::v1::PriorityClass>();
        self.listed::<node::v1::RuntimeClass>();
        self.listed::<apps::v1::Deployment>();
        self.listed::<apps::v1::ReplicaSet>();
        self.listed::<apps::v1::DaemonSet>();
        self.listed::<apps::v1::ControllerRevision>();
        self.listed::<policy::v1::PodDisruptionBudget>();
        self.listed::<rbac::v1::Role>();
        self.listed::<rbac::v1::RoleBinding>();
        self.listed::<rbac::v1::ClusterRole>();
        self.listed::<rbac::v1::ClusterRoleBinding>();
    }

    /// Kinds that are asked or answered but not stored.
    fn add_virtual(&mut self) {
        use k8s_openapi::api::{authentication, authorization, autoscaling, core, policy};
        use k8s_openapi::apimachinery::pkg::apis::meta;
        self.add::<core::v1::Binding>();
        self.add::<policy::v1::Eviction>();
        self.add::<autoscaling::v1::Scale>();
        self.add::<authentication::v1::TokenRequest>();
        self.add::<authentication::v1::TokenReview>();
        self.add::<authentication::v1::SelfSubjectReview>();
        self.add::<authorization::v1::SubjectAccessReview>();
        self.add::<authorization::v1::LocalSubjectAccessReview>();
        self.add::<authorization::v1::SelfSubjectAccessReview>();
        self.add::<authorization::v1::SelfSubjectRulesReview>();
        self.add::<meta::v1::Status>();
        self.add::<meta::v1::APIResourceList>();
        let _: Schema = self.generator.subschema_for::<meta::v1::DeleteOptions>();
        self.kinds.push(Kind {
            group: String::new(),
            version: "v1".into(),
            kind: "DeleteOptions".into(),
            component: meta::v1::DeleteOptions::schema_name().into_owned(),
        });
    }
}

/// `facts.txt`, by component.
struct Facts {
    types: BTreeMap<String, BTreeMap<String, BTreeSet<String>>>,
    atomic: BTreeSet<String>,
}

impl Facts {
    fn parse(text: &str) -> Self {
        let mut facts = Self {
            types: BTreeMap::new(),
            atomic: BTreeSet::new(),
        };
        for line in text.lines().filter(|l| !l.starts_with('#') && !l.is_empty()) {
            let mut words = line.split(' ');
            let name = format!("io.k8s.{}", words.next().unwrap_or_default());
            for word in words {
                match word.split_once(':') {
                    Some((field, flags)) => {
                        let flags = flags.split(',').map(str::to_owned).collect();
                        facts.types.entry(name.clone()).or_default().insert(field.into(), flags);
                    }
                    None => {
                        assert_eq!(word, "atomic", "what is said of {name} as a whole");
                        facts.atomic.insert(name.clone());
                    }
                }
            }
        }
        facts
    }

    /// What is particular of every list.
    fn add_lists(&mut self, lists: Vec<String>) {
        for list in lists {
            let fields = self.types.entry(list).or_default();
            fields.insert("metadata".into(), BTreeSet::from(["value".to_owned()]));
            fields.insert("items".into(), BTreeSet::from(["loose".to_owned()]));
        }
    }

    fn of(&self, name: &str, field: &str) -> Flags<'_> {
        Flags(self.types.get(name).and_then(|t| t.get(field)))
    }

    /// The fields of a type that have a flag.
    fn fields_with(&self, name: &str, flag: &str) -> Vec<&str> {
        let fields = self.types.get(name).into_iter().flatten();
        fields
            .filter(|(_, flags)| flags.contains(flag))
            .map(|(f, _)| f.as_str())
            .collect()
    }

    /// Every line must be about something that there is.
    fn check(&self, components: &BTreeMap<String, Value>) {
        for (name, fields) in &self.types {
            let schema = components
                .get(name)
                .unwrap_or_else(|| panic!("{FACTS}: there is no {name}"));
            for field in fields.keys() {
                let known = schema["properties"].get(field).is_some();
                assert!(known, "{FACTS}: {name} has no field {field}");
            }
        }
        for name in &self.atomic {
            assert!(components.contains_key(name), "{FACTS}: there is no {name}");
        }
    }
}

/// `numbers.txt`, by component: the number of each field, after that of the struct that it is embedded with, or 0.
struct Numbers(BTreeMap<String, BTreeMap<String, (u16, u16)>>);

impl Numbers {
    fn parse(text: &str) -> Self {
        let mut types: BTreeMap<String, BTreeMap<String, (u16, u16)>> = BTreeMap::new();
        for line in text.lines().filter(|l| !l.starts_with('#')) {
            let mut words = line.split(' ');
            let fields = types
                .entry(format!("io.k8s.{}", words.next().unwrap_or_default()))
                .or_default();
            for word in words {
                let (field, number) = word.split_once('=').expect("FIELD=NUMBER");
                let (outer, inner) = number.split_once('.').unwrap_or(("0", number));
                let number = |text: &str| text.parse().expect("a field's number");
                fields.insert(field.into(), (number(outer), number(inner)));
            }
        }
        Self(types)
    }

    fn of(&self, name: &str, field: &str) -> (u16, u16) {
        let fields = self.0.get(name);
        fields.and_then(|f| f.get(field)).copied().unwrap_or_default()
    }

    /// Every line must be about something that there is, and every field that there is must have its number.
    fn check(&self, components: &BTreeMap<String, Value>) {
        for (name, fields) in &self.0 {
            let schema = components
                .get(name)
                .unwrap_or_else(|| panic!("{NUMBERS}: there is no {name}"));
            for field in fields.keys() {
                let known = schema["properties"].get(field).is_some();
                assert!(known, "{NUMBERS}: {name} has no field {field}");
            }
            for field in schema["properties"].as_object().into_iter().flatten().map(|(f, _)| f) {
                let known = fields.contains_key(field) || ["apiVersion", "kind"].contains(&field.as_str());
                assert!(known, "{NUMBERS}: no number for {field} of {name}");
            }
        }
    }
}

/// What is said of one field.
#[derive(Clone, Copy)]
struct Flags<'a>(Option<&'a BTreeSet<String>>);

impl Flags<'_> {
    fn has(self, flag: &str) -> bool {
        self.0.is_some_and(|f| f.contains(flag))
    }

    /// KEY of `flag=KEY`.
    fn key(self, flag: &str) -> Option<String> {
        self.0?
            .iter()
            .find_map(|f| Some(f.strip_prefix(flag)?.strip_prefix('=')?.to_owned()))
    }

    /// Whether it is written where it is empty: no `omitempty` in Go.
    fn written(self, required: bool) -> bool {
        (required && !self.has("omitted")) || self.has("always")
    }

    fn patch_strategy(self) -> String {
        let merge = self.key("merge").is_some() || self.has("merge");
        let strategies = [
            ("merge", merge),
            ("retainKeys", self.has("retainKeys")),
            ("replace", self.has("replace")),
        ];
        let words: Vec<&str> = strategies.iter().filter(|s| s.1).map(|s| s.0).collect();
        words.join(",")
    }
}

/// One component as Kubernetes publishes it.
fn publish(name: &str, schema: Value, facts: &Facts, kinds: &[Kind]) -> Value {
    let Value::Object(mut schema) = schema else {
        panic!("{name} is no schema")
    };
    let here: Vec<Value> = kinds
        .iter()
        .filter(|k| k.component == name)
        .map(|k| json!({"group": k.group, "version": k.version, "kind": k.kind}))
        .collect();
    if !here.is_empty() {
        // k8s-openapi makes `metadata` required, because its types have it by value; the API does not.
        correct_required(&mut schema, |f| f == "metadata", &[]);
        schema.insert("x-kubernetes-group-version-kind".into(), here.into());
    }
    if facts.atomic.contains(name) {
        schema.insert("x-kubernetes-map-type".into(), "atomic".into());
    }
    if schema.remove("x-kubernetes-int-or-string").is_some() {
        if name.ends_with(".Quantity") {
            schema.insert("oneOf".into(), json!([{"type": "string"}, {"type": "number"}]));
        } else {
            schema.insert("format".into(), "int-or-string".into());
            schema.insert("oneOf".into(), json!([{"type": "integer"}, {"type": "string"}]));
        }
    }
    let also = facts.fields_with(name, "required");
    correct_required(&mut schema, |f| facts.of(name, f).has("optional"), &also);
    let required = required(&schema);
    if let Some(Value::Object(fields)) = schema.get_mut("properties") {
        for (field, property) in fields {
            publish_field(property, facts.of(name, field), required.contains(field.as_str()));
        }
    }
    Value::Object(schema)
}

fn correct_required(schema: &mut Map<String, Value>, but: impl Fn(&str) -> bool, also: &[&str]) {
    let mut names = required(schema);
    names.retain(|f| !but(f));
    names.extend(also.iter().map(|f| (*f).to_owned()));
    schema.remove("required");
    if !names.is_empty() {
        schema.insert("required".into(), json!(names));
    }
}

fn required(schema: &Map<String, Value>) -> BTreeSet<String> {
    let names = schema.get("required").and_then(Value::as_array).into_iter().flatten();
    names.filter_map(|n| n.as_str().map(str::to_owned)).collect()
}

fn publish_field(property: &mut Value, flags: Flags<'_>, required: bool) {
    let Value::Object(property) = property else {
        panic!("a property is a schema")
    };
    wrap_ref(property, flags.has("value"));
    publish_inner(property);
    if let Some(default) = flags.key("default") {
        let is_text = property.get("type").is_some_and(|t| t == "string");
        let value = if is_text {
            json!(default)
        } else {
            serde_json::from_str(&default).expect("a default is JSON")
        };
        property.insert("default".into(), value);
    } else if flags.written(required) && !flags.has("pointer") {
        insert_zero(property);
    }
    if property.get("type").is_some_and(|t| t == "array") && !flags.has("loose") {
        let keys = flags.key("map");
        let kind = match keys {
            Some(_) => "map",
            None if flags.has("set") => "set",
            None => "atomic",
        };
        property.insert("x-kubernetes-list-type".into(), kind.into());
        if let Some(keys) = keys {
            let keys: Vec<&str> = keys.split('+').collect();
            property.insert("x-kubernetes-list-map-keys".into(), json!(keys));
        }
    } else if flags.has("atomic") {
        property.insert("x-kubernetes-map-type".into(), "atomic".into());
    }
    if let Some(key) = flags.key("merge") {
        property.insert("x-kubernetes-patch-merge-key".into(), key.into());
    }
    let strategy = flags.patch_strategy();
    if !strategy.is_empty() {
        property.insert("x-kubernetes-patch-strategy".into(), strategy.into());
    }
}

/// What lists and maps are of, at any depth: Go's zero values are their defaults.
fn publish_inner(schema: &mut Map<String, Value>) {
    for inner in ["items", "additionalProperties"] {
        if let Some(Value::Object(of)) = schema.get_mut(inner) {
            wrap_ref(of, inner == "items");
            insert_zero(of);
            publish_inner(of);
        }
    }
}

/// Publishes Go's zero value as the default of a scalar.
fn insert_zero(schema: &mut Map<String, Value>) {
    let zero = match schema.get("type").and_then(Value::as_str) {
        Some("string") if !schema.contains_key("format") => json!(""),
        Some("integer" | "number") => json!(0),
        Some("boolean") => json!(false),
        _ => return,
    };
    schema.insert("default".into(), zero);
}

/// A `$ref` may have no siblings in OpenAPI 3.0: it goes into an `allOf` where there are any. A struct by value has a default.
fn wrap_ref(schema: &mut Map<String, Value>, by_value: bool) {
    let Some(target) = schema.get("$ref").cloned() else {
        return;
    };
    let scalar = ["Time", "Quantity", "IntOrString", "RawExtension"];
    let is_struct = !scalar.iter().any(|s| target.as_str().is_some_and(|t| t.ends_with(s)));
    let by_value = by_value && is_struct;
    if schema.len() == 1 && !by_value {
        return;
    }
    let mut wrapped = Map::new();
    wrapped.insert("allOf".into(), json!([{"$ref": target}]));
    if by_value {
        wrapped.insert("default".into(), json!({}));
    }
    wrapped.extend(std::mem::take(schema).into_iter().filter(|(k, _)| k != "$ref"));
    *schema = wrapped;
}

fn write_components(path: &Path, components: &BTreeMap<String, Value>) {
    let file = std::fs::File::create(path).expect("OUT_DIR is writable");
    let mut gzip = flate2::write::GzEncoder::new(file, flate2::Compression::best());
    for (name, schema) in components {
        writeln!(gzip, "{name}\t{schema}").expect("OUT_DIR is writable");
    }
    gzip.finish().expect("OUT_DIR is writable");
}

/// The source text of the static tables.
fn tables(components: &BTreeMap<String, Value>, (facts, tags): (&Facts, &Numbers), kinds: &[Kind]) -> String {
    let numbers: BTreeMap<&str, usize> = components.keys().enumerate().map(|(i, n)| (n.as_str(), i)).collect();
    let mut out = String::from("static TYPES: &[Type] = &[\n");
    for (name, schema) in components {
        let schema = schema.as_object().expect("published above");
        let required = required(schema);
        let own = own_shape(name, schema);
        writeln!(out, "Type {{ name: {name:?}, shape: {own}, fields: &[").expect("strings grow");
        let fields = schema.get("properties").and_then(Value::as_object);
        let sorted: BTreeMap<&String, &Value> = fields.into_iter().flatten().collect();
        for (field, property) in sorted {
            let flags = facts.of(name, field);
            let shape = shape(property, &numbers);
            let merge_key = flags.key("merge").unwrap_or_default();
            writeln!(
                out,
                "    Field {{ name: {field:?}, number: {:?}, shape: {shape}, merge_key: {merge_key:?}, written: {}, pointer: {}, value: {}, merge: {}, replace: {} }},",
                tags.of(name, field),
                flags.written(required.contains(field)),
                flags.has("pointer"),
                flags.has("value"),
                flags.has("merge") || !merge_key.is_empty(),
                flags.has("replace"),
            )
            .expect("strings grow");
        }
        out.push_str("] },\n");
    }
    out.push_str("];\nstatic KINDS: &[Kind] = &[\n");
    for k in kinds {
        let number = numbers[k.component.as_str()];
        writeln!(
            out,
            "Kind {{ group: {:?}, version: {:?}, kind: {:?}, number: {number} }},",
            k.group, k.version, k.kind
        )
        .expect("strings grow");
    }
    out.push_str("];\n");
    out
}

/// What a component is: a struct with fields, or one of the few with rules of their own.
fn own_shape(name: &str, schema: &Map<String, Value>) -> &'static str {
    match name.rsplit('.').next().unwrap_or_default() {
        "Time" => "Shape::Time",
        "MicroTime" => "Shape::MicroTime",
        "Quantity" => "Shape::Quantity",
        "IntOrString" => "Shape::IntOrString",
        "FieldsV1" | "RawExtension" | "JSON" => "Shape::Any",
        _ => {
            let object = schema.get("type").is_some_and(|t| t == "object");
            assert!(object, "{name} has a shape of its own: {schema:?}");
            "Shape::Struct"
        }
    }
}

fn shape(schema: &Value, numbers: &BTreeMap<&str, usize>) -> String {
    let target = schema["$ref"].as_str().or_else(|| schema["allOf"][0]["$ref"].as_str());
    if let Some(target) = target {
        let name = target.strip_prefix(REF).expect("all refs are to components");
        return format!("Shape::Ref({})", numbers[name]);
    }
    let format = schema["format"].as_str().unwrap_or_default();
    match (schema["type"].as_str().unwrap_or_default(), format) {
        ("string", "byte") => "Shape::Bytes".into(),
        ("string", "") => "Shape::Text".into(),
        ("boolean", _) => "Shape::Bool".into(),
        ("integer", "int32") => "Shape::Int32".into(),
        ("integer", "int64") => "Shape::Int64".into(),
        ("array", _) => format!("Shape::List(&{})", shape(&schema["items"], numbers)),
        ("object", _) if schema.get("additionalProperties").is_some() => {
            format!("Shape::Map(&{})", shape(&schema["additionalProperties"], numbers))
        }
        _ => panic!("no shape for {schema}"),
    }
}

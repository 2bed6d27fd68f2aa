//! The table of decoders.
//!
//! Budgets are measured and rounded up: a JSON list of digits costs a `Value` (72 bytes) for two bytes, and a growing list has room
//! for twice its items.

mod api;
mod edge;
mod files;
mod hub;
mod link;

use std::sync::LazyLock;

use serde_json::Value;

use crate::Target;

/// Decoders that copy what they get a few times.
const COPIES: usize = 8;
/// The YAML parser keeps an event and a mark for each byte of nested lists; the files are the machine's own and at most 16 KiB.
const YAML: usize = 2048;
/// A packet of one byte costs its headers and its handles, cut, joined and cut again.
const PACKETS: usize = 1024;
/// Decoders that make a tree of JSON.
const TREE: usize = 160;
/// Room for messages, small tables and errors.
const SMALL: usize = 16 << 10;
/// Room for what validation says: at most a few messages that repeat the value.
const WORDS: usize = 256 << 10;

/// All of them.
pub const ALL: &[Target] = &[
    target("wire.packet", COPIES, SMALL, link::packets, link::packet),
    target("wire.down", 64, 128 << 10, link::downs, link::down),
    target("wire.up", 64, 128 << 10, link::ups, link::up),
    target("relay.link", 64, 1 << 20, link::conversations, link::converse),
    target("relay.replica", 64, 1 << 20, link::replicas, link::replica),
    target("tunnel.control", COPIES, SMALL, link::controls, link::control),
    target(
        "tunnel.records",
        COPIES,
        64 << 10,
        link::streams_of_records,
        link::records,
    ),
    target("tunnel.proxy", COPIES, SMALL, link::proxy_answers, link::proxy_answer),
    target("tunnel.name", COPIES, SMALL, tunnel::fuzzing::name_answers, link::name),
    target(
        "tunnel.offload",
        PACKETS,
        WORDS,
        tunnel::fuzzing::offloads,
        tunnel::fuzzing::offload,
    ),
    target("tunnel.certificate", COPIES, SMALL, hub::certificates, hub::certificate),
    target("hub.join", 24, 64 << 10, hub::joins, hub::join),
    target("hub.rejoin", 24, 64 << 10, hub::rejoins, hub::rejoin),
    target("hub.csr", 24, 64 << 10, hub::csrs, hub::csr),
    target("hub.status", TREE, SMALL, hub::statuses, hub::status),
    target("hub.config", YAML, 128 << 10, files::hub_configs, files::hub_config),
    target("edge.config", YAML, 128 << 10, files::edge_configs, files::edge_config),
    target("edge.request", 64, SMALL, edge::requests, edge::request),
    target("edge.log", COPIES, 256 << 10, edge::logs, edge::log),
    target("edge.pod", TREE, WORDS, edge::pods, edge::pod),
    target("edge.registries", TREE, WORDS, edge::registries, edge::registry),
    target("edge.quantity", 2 * COPIES, SMALL, edge::quantities, edge::quantity),
    target("store.record", COPIES, SMALL, files::records, files::record),
    target("images.archive", 24, 64 << 10, files::archives, files::archive),
    target("api.schema", TREE, WORDS, api::objects, api::schema),
    target("api.create", 2 * TREE, WORDS, api::objects, api::create),
    target("api.update", 2 * TREE, WORDS, api::pairs, api::update),
    target("api.patch", 2 * TREE, WORDS, api::patches, api::patch),
    target("api.request", 256, 64 << 10, api::requests, api::request),
    target("api.selector", 256, SMALL, api::selectors, api::selector),
    target("api.accept", 256, SMALL, api::accepts, api::accept),
    target("api.headers", 64, SMALL, api::headers, api::header),
    target("api.certificate", COPIES, SMALL, hub::certificates, api::certificate),
    target("api.token", TREE, SMALL, api::tokens, api::token),
    target("api.options", TREE, SMALL, api::options, api::option),
    target("api.metrics", 64, SMALL, api::metrics, api::metric),
];

const fn target(
    name: &'static str,
    per_byte: usize,
    constant: usize,
    corpus: fn() -> Vec<Vec<u8>>,
    run: fn(&[u8]) -> Result<(), String>,
) -> Target {
    Target {
        name,
        per_byte,
        constant,
        corpus,
        run,
    }
}

fn texts(list: &[&str]) -> Vec<Vec<u8>> {
    list.iter().map(|text| text.as_bytes().to_vec()).collect()
}

/// The objects of `corpus/objects.yaml`.
static OBJECTS: LazyLock<Vec<Value>> = LazyLock::new(|| {
    let documents = serde_yaml_ng::Deserializer::from_str(include_str!("../corpus/objects.yaml"));
    documents
        .map(|document| serde::Deserialize::deserialize(document).expect("corpus/objects.yaml is ours"))
        .collect()
});

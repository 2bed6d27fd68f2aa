use super::*;
use crate::testing::ip;

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = (value.len() as u16 + 4).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn packet(kind: u16, header: &[u8], attributes: &[Vec<u8>]) -> Vec<u8> {
    let body = [header.to_vec(), attributes.concat()].concat();
    let mut bytes = ((HEADER + body.len()) as u32).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(2_u16.to_ne_bytes());
    bytes.extend(7_u32.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend(body);
    bytes
}

fn decoded(bytes: &[u8]) -> Kernel {
    let mut kernel = Kernel::default();
    for message in messages(bytes) {
        add(message, &mut kernel);
    }
    kernel
}

fn a_link(name: &str, flags: u32, operational: u8) -> Vec<u8> {
    let mut header = vec![0, 0, 1, 0];
    header.extend(4_u32.to_ne_bytes());
    header.extend(flags.to_ne_bytes());
    header.extend([0; 4]);
    let kind = attribute(1, b"veth\0");
    packet(
        message::NEW_LINK,
        &header,
        &[
            attribute(3, format!("{name}\0").as_bytes()),
            attribute(16, &[operational]),
            attribute(33, &[1]),
            attribute(18, &kind),
        ],
    )
}

fn a_route(kind: u8, attributes: &[Vec<u8>]) -> Vec<u8> {
    let header = [AF_INET, 0, 0, 0, 254, 3, 0, kind, 0, 0, 0, 0];
    packet(message::NEW_ROUTE, &header, attributes)
}

fn a_rule(attributes: &[Vec<u8>]) -> Vec<u8> {
    packet(
        message::NEW_RULE,
        &[AF_INET, 0, 32, 0, 0, 0, 0, 1, 0, 0, 0, 0],
        attributes,
    )
}

#[test]
fn links_and_addresses() {
    let mut bytes = a_link("wwan0", 1, 6);
    bytes.extend(a_link("wlan0", 1, 5));
    bytes.extend(a_link("eth0", 0, 0));
    let address = |flags: u8, scope, extra: &[Vec<u8>]| {
        let mut header = vec![AF_INET, 24, flags, scope];
        header.extend(4_u32.to_ne_bytes());
        packet(message::NEW_ADDRESS, &header, extra)
    };
    bytes.extend(address(
        0,
        0,
        &[attribute(1, &[10, 0, 0, 1]), attribute(2, &[10, 0, 0, 2])],
    ));
    bytes.extend(address(0, 253, &[attribute(1, &[10, 0, 0, 3])]));
    bytes.extend(address(
        0,
        0,
        &[attribute(1, &[10, 0, 0, 4]), attribute(8, &0x40_u32.to_ne_bytes())],
    ));
    bytes.extend(address(0, 0, &[attribute(1, &[169, 254, 0, 5])]));
    let kernel = decoded(&bytes);
    let link = kernel.link("wwan0").unwrap();
    assert_eq!(
        (link.index, link.up, link.carrier, link.kind.as_str()),
        (4, true, true, "veth")
    );
    assert!(!kernel.link("wlan0").unwrap().carrier, "dormant");
    assert!(!kernel.link("eth0").unwrap().up);
    let usable: Vec<_> = kernel.addresses.iter().map(|own| (own.address, own.usable)).collect();
    let expected = [
        ("10.0.0.2", true),
        ("10.0.0.3", false),
        ("10.0.0.4", false),
        ("169.254.0.5", false),
    ];
    assert_eq!(usable, expected.map(|(text, usable)| (ip(text), usable)));
}

#[test]
fn routes_of_one_device_and_of_several() {
    let device = attribute(4, &4_u32.to_ne_bytes());
    let gateway = attribute(5, &[192, 0, 2, 1]);
    let table = attribute(15, &1000_u32.to_ne_bytes());
    let mut bytes = a_route(
        1,
        &[
            device.clone(),
            gateway.clone(),
            table,
            attribute(6, &100_u32.to_ne_bytes()),
        ],
    );
    let hop = |flags: u8, link: u32| {
        let mut bytes = (8 + gateway.len() as u16).to_ne_bytes().to_vec();
        bytes.extend([flags, 0]);
        bytes.extend(link.to_ne_bytes());
        bytes.extend(&gateway);
        bytes
    };
    bytes.extend(a_route(
        1,
        &[attribute(9, &[hop(0, 5), hop(16, 6), hop(0, 7)].concat())],
    ));
    bytes.extend(a_route(2, std::slice::from_ref(&device)));
    bytes.extend(a_route(1, &[]));
    let routes = decoded(&bytes).routes;
    assert_eq!((routes.len(), routes[0].table, routes[0].metric), (2, 1000, 100));
    assert_eq!(routes[0].hops[0].gateway, Some(ip("192.0.2.1")));
    let links: Vec<_> = routes[1].hops.iter().map(|hop| hop.link).collect();
    assert_eq!(links, [5, 7], "the hop whose link is down is none");
}

#[test]
fn rules_with_conditions_that_we_do_not_meet_are_none() {
    let (source, table) = (attribute(2, &[10, 0, 0, 2]), attribute(15, &103_u32.to_ne_bytes()));
    let nothing = attribute(14, &u32::MAX.to_ne_bytes());
    let mut bytes = a_rule(&[
        source.clone(),
        table.clone(),
        nothing,
        attribute(6, &9_u32.to_ne_bytes()),
    ]);
    bytes.extend(a_rule(&[table.clone(), attribute(10, &1_u32.to_ne_bytes())]));
    bytes.extend(a_rule(&[table, attribute(14, &0_u32.to_ne_bytes())]));
    let rules = decoded(&bytes).rules;
    assert_eq!(rules.len(), 1);
    assert_eq!((rules[0].priority, rules[0].table), (9, 103));
    assert!(rules[0].source.unwrap().covers(ip("10.0.0.2")));
}

#[test]
fn mangled_bytes_are_taken_for_less() {
    let whole = [
        a_link("wwan0", 1, 6),
        a_route(1, &[attribute(4, &[4, 0, 0, 0])]),
        a_rule(&[attribute(2, &[10, 0, 0, 2])]),
    ]
    .concat();
    for cut in 0..whole.len() {
        decoded(&whole[..cut]);
    }
    for at in 0..whole.len() {
        for value in [0, 1, 3, 255] {
            let mut bytes = whole.clone();
            bytes[at] = value;
            decoded(&bytes);
        }
    }
    assert_eq!(decoded(&whole).routes.len(), 1);
}

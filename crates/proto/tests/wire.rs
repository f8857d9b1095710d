//! Bytes as other programs write them: a number that is wrong here would be silent elsewhere.
#![allow(clippy::unwrap_used)]

use cooper_proto::{control, fsutil, gateway, pb, types};
use prost::Message;

/// Encodes fields by hand: a tag byte (or two) and a length-delimited value.
fn text(number: u32, value: &str) -> Vec<u8> {
    field(number, value.as_bytes())
}

fn field(number: u32, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    prost::encoding::encode_varint(u64::from(number << 3 | 2), &mut bytes);
    prost::encoding::encode_varint(value.len() as u64, &mut bytes);
    bytes.extend_from_slice(value);
    bytes
}

fn number(number: u32, value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    prost::encoding::encode_varint(u64::from(number << 3), &mut bytes);
    prost::encoding::encode_varint(value, &mut bytes);
    bytes
}

#[test]
fn an_exec_op_has_the_published_numbers() {
    let meta = [
        text(1, "true"),
        text(2, "A=b"),
        text(3, "/w"),
        text(4, "user"),
    ]
    .concat();
    let meta = [
        meta,
        text(7, "host"),
        text(10, "/parent"),
        number(11, 1),
        field(12, &[3, 4]),
    ]
    .concat();
    let cache = [text(1, "id"), number(2, 2)].concat();
    let mount = [
        number(1, 5),
        text(2, "/sel"),
        text(3, "/dst"),
        number(4, 6),
        number(5, 1),
    ]
    .concat();
    let mount = [
        mount,
        number(6, 3),
        field(20, &cache),
        text(23, "r"),
        number(24, 2),
    ]
    .concat();
    let exec = [
        field(1, &meta),
        field(2, &mount),
        number(3, 1),
        number(4, 1),
    ]
    .concat();
    let input = [text(1, "sha256:aa"), number(2, 1)].concat();
    let op = [
        field(1, &input),
        field(2, &exec),
        field(10, &text(1, "arm64")),
    ]
    .concat();

    let op = pb::Op::decode(&*op).unwrap();
    assert_eq!(op.inputs[0].digest, "sha256:aa");
    assert_eq!(op.platform.unwrap().architecture, "arm64");
    let Some(pb::op::Op::Exec(exec)) = op.op else {
        panic!("not an exec")
    };
    assert_eq!(exec.network(), pb::NetMode::Host);
    assert_eq!(exec.security(), pb::SecurityMode::Insecure);
    let meta = exec.meta.unwrap();
    assert_eq!(
        (meta.args[0].as_str(), meta.hostname.as_str()),
        ("true", "host")
    );
    assert_eq!(meta.cgroup_parent, "/parent");
    assert!(meta.remove_mount_stubs_recursive);
    assert_eq!(meta.valid_exit_codes, [3, 4]);
    let mount = &exec.mounts[0];
    assert_eq!((mount.input, mount.output, mount.readonly), (5, 6, true));
    assert_eq!(mount.mount_type(), pb::MountType::Cache);
    assert_eq!(
        mount.cache_opt.as_ref().unwrap().sharing(),
        pb::CacheSharingOpt::Locked
    );
    assert_eq!(mount.content_cache(), pb::MountContentCache::Off);
}

#[test]
fn a_solve_request_has_the_published_numbers() {
    let entry = [text(1, "k"), text(2, "v")].concat();
    let exporter = [text(1, "image"), field(2, &entry)].concat();
    let bytes = [
        text(1, "ref"),
        text(5, "session"),
        text(6, "dockerfile.v0"),
        field(7, &entry),
    ]
    .concat();
    let bytes = [
        bytes,
        text(9, "network.host"),
        number(11, 1),
        field(13, &exporter),
    ]
    .concat();
    let request = control::SolveRequest::decode(&*bytes).unwrap();
    assert_eq!(
        (request.r#ref.as_str(), request.session.as_str()),
        ("ref", "session")
    );
    assert_eq!(request.frontend_attrs["k"], "v");
    assert!(request.internal);
    assert_eq!(request.exporters[0].attrs["k"], "v");
    assert_eq!(request.encode_to_vec(), bytes);
}

#[test]
fn packets_and_stats_have_the_published_numbers() {
    let stat = [
        text(1, "a/b"),
        number(2, 0o644),
        number(5, 3),
        number(6, 9),
        text(7, "l"),
    ]
    .concat();
    let packet = fsutil::Packet::decode(&*[number(1, 0), field(2, &stat), number(3, 7)].concat());
    let packet = packet.unwrap();
    assert_eq!(packet.id, 7);
    let stat = packet.stat.unwrap();
    assert_eq!(
        (stat.path.as_str(), stat.mode, stat.size, stat.mod_time),
        ("a/b", 0o644, 3, 9)
    );
    assert_eq!(stat.linkname, "l");
    assert_eq!(fsutil::packet::PacketType::PacketErr as i32, 4);
}

#[test]
fn results_and_workers_have_the_published_numbers() {
    let reference = text(1, "id");
    let result = [
        field(3, &reference),
        field(10, &[text(1, "m"), field(2, b"v")].concat()),
    ]
    .concat();
    let result = gateway::Result::decode(&*result).unwrap();
    assert_eq!(result.metadata["m"], b"v");
    let Some(gateway::result::Result::Ref(reference)) = result.result else {
        panic!("no ref")
    };
    assert_eq!(reference.id, "id");

    let policy = [number(1, 1), number(3, 5), text(4, "f"), number(6, 8)].concat();
    let worker = [text(1, "w"), field(4, &policy)].concat();
    let worker = types::WorkerRecord::decode(&*worker).unwrap();
    assert_eq!(
        (
            worker.gc_policy[0].reserved_space,
            worker.gc_policy[0].min_free_space
        ),
        (5, 8)
    );
}

#[test]
fn maps_encode_in_the_order_of_their_keys() {
    let mut source = pb::SourceOp::default();
    for key in ["c", "a", "b"] {
        source.attrs.insert(key.into(), String::new());
    }
    let order: Vec<u8> = ["a", "b", "c"]
        .iter()
        .flat_map(|key| field(2, &text(1, key)))
        .collect();
    assert_eq!(source.encode_to_vec(), order);
}

//! The bytes of the files: whoever changes them breaks every data directory.

use crate::frame::{FileHeader, FrameHeader, FrameKind, Payload, RawChange, split_change};
use crate::record::{FileKind, RecordFault, Revision};
use crate::sim::{Rig, SMALL, SimDisk};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

const ID: [u8; 16] = *b"0123456789abcdef";

fn header() -> FileHeader {
    FileHeader {
        kind: FileKind::Trust,
        owner: [0xaa; 32],
        id: ID,
        base: Revision(5),
        previous: [0xbb; 32],
        order_seed: 9,
    }
}

fn payload() -> Payload {
    let mut payload = Payload::default();
    payload.push(|out| out.extend(b"key"), Some(|out: &mut Vec<u8>| out.extend(b"record"))).unwrap();
    payload.push(|out| out.extend(b"gone"), None::<fn(&mut Vec<u8>)>).unwrap();
    payload
}

#[test]
fn golden_file_header() {
    assert_eq!(hex(&header().encode()), include_str!("golden/file_header.hex").trim());
    assert_eq!(FileHeader::decode(&header().encode()), Ok(header()));
}

#[test]
fn golden_frame() {
    let previous = header().chain_start();
    let mut payload = payload();
    let mut framed = || payload.framed(&ID, 128, (FrameKind::Batch, Revision(6), &previous), <[u8]>::to_vec);
    let (bytes, digest) = framed();
    assert_eq!(framed(), (bytes.clone(), digest), "as often as it is asked for");
    assert_eq!(hex(&bytes), include_str!("golden/batch_frame.hex").trim());
    assert_eq!(bytes[bytes.len() - 32..], digest);
    let decoded = FrameHeader::decode(bytes.first_chunk().unwrap(), &ID, 128).unwrap();
    assert_eq!((decoded.length, decoded.count, decoded.previous), (23, 2, previous));
    // The same bytes at another place, or in another file, are no frame.
    assert_eq!(FrameHeader::decode(bytes.first_chunk().unwrap(), &ID, 129), None);
    assert_eq!(FrameHeader::decode(bytes.first_chunk().unwrap(), &[0; 16], 128), None);
}

#[test]
fn golden_files_are_written() {
    let disk = SimDisk::default();
    let mut rig = Rig::on(&disk);
    rig.put(1, b"one");
    rig.put(2, b"two");
    rig.step();
    rig.remove(1);
    rig.step();
    rig.stop();
    for (name, golden) in
        [("trust.hf", include_str!("golden/trust.hf.hex")), ("floor", include_str!("golden/floor.hex"))]
    {
        // The file id comes from `rand`'s standard generator: another version of it may name the file otherwise.
        assert_eq!(hex(&disk.content(name).unwrap()), golden.trim(), "{name}");
    }
}

#[test]
fn golden_files_are_opened() {
    let file = |name: &str, golden: &str| (name.to_owned(), unhex(golden.trim()));
    let files =
        [file("trust.hf", include_str!("golden/trust.hf.hex")), file("floor", include_str!("golden/floor.hex"))];
    let rig = Rig::open(SimDisk::of(files.into(), 512), 5, SMALL).unwrap();
    assert_eq!(rig.records(), [(2, b"two".to_vec())]);
    assert_eq!(rig.report.revision, Revision(3));
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

#[test]
fn changes_split_as_they_were_pushed() {
    let payload = payload();
    let (first, rest) = split_change(payload.bytes()).unwrap();
    assert_eq!(first, RawChange { key: b"key", record: Some(b"record") });
    let (second, rest) = split_change(rest).unwrap();
    assert_eq!(second, RawChange { key: b"gone", record: None });
    assert_eq!(rest, b"");
    for cut in 0..payload.len() {
        // Never a panic, and never more than what is there.
        let mut rest = &payload.bytes()[..cut];
        let mut changes = 0;
        while let Some((_, after)) = split_change(rest) {
            rest = after;
            changes += 1;
        }
        assert!(changes < 2, "cut at {cut}");
    }
}

#[test]
fn what_is_longer_than_its_limit_is_refused() {
    let long = |bytes: usize| move |out: &mut Vec<u8>| out.resize(out.len() + bytes, 0);
    let mut payload = Payload::default();
    assert_eq!(payload.push(long(257), None::<fn(&mut Vec<u8>)>), Err(RecordFault::BadKey));
    assert_eq!(payload.push(long(1), Some(long((1 << 20) + 1))), Err(RecordFault::BadValue));
}

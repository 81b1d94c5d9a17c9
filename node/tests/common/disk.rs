//! Looking at a data directory and damaging it, as a bad disk, a restored backup or a careless hand would.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::SystemTime;

use super::Home;

/// Every file of a directory but the lock and the socket, with its bytes.
pub(crate) fn bytes_of(home: &Home) -> BTreeMap<String, Vec<u8>> {
    kept(home).map(|name| (name.clone(), fs::read(home.file(&name)).unwrap_or_default())).collect()
}

/// Every such file, with its bytes and the time of its last change.
pub(crate) fn stamps_of(home: &Home) -> BTreeMap<String, (Vec<u8>, SystemTime)> {
    let stamp = |name: &str| {
        let path = home.file(name);
        (fs::read(&path).unwrap(), fs::metadata(&path).unwrap().modified().unwrap())
    };
    kept(home).map(|name| (name.clone(), stamp(&name))).collect()
}

fn kept(home: &Home) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(home.path()).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name != "lock" && name != "control.sock")
}

/// Copies the files of a data directory to `to`, as a backup would. The node must not run.
pub(crate) fn copy(home: &Home, to: &Path) {
    fs::create_dir(to).unwrap();
    for name in kept(home) {
        fs::copy(home.file(&name), to.join(&name)).unwrap();
    }
}

/// Puts a copy back in place of everything that is there.
pub(crate) fn put_back(home: &Home, from: &Path) {
    for name in kept(home) {
        fs::remove_file(home.file(&name)).unwrap();
    }
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), home.path().join(entry.file_name())).unwrap();
    }
}

/// Changes one byte.
pub(crate) fn flip(path: &Path, offset: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 0x40], offset).unwrap();
}

/// Overwrites bytes.
pub(crate) fn overwrite(path: &Path, offset: u64, bytes: &[u8]) {
    OpenOptions::new().write(true).open(path).unwrap().write_all_at(bytes, offset).unwrap();
}

/// Makes a file of these bytes, for its owner only.
pub(crate) fn make(path: &Path, bytes: &[u8]) {
    let mut options = OpenOptions::new();
    let mut file: File = options.write(true).create(true).truncate(true).mode(0o600).open(path).unwrap();
    file.write_all(bytes).unwrap();
}

/// Sets the permissions of a file or a directory.
pub(crate) fn allow(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// One frame of a record file (trust/src/frame.rs).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Frame {
    pub(crate) offset: u64,
    /// 1 piece, 2 complete, 3 batch.
    pub(crate) kind: u8,
    pub(crate) payload: u64,
    pub(crate) revision: u64,
}

impl Frame {
    /// Where it ends.
    pub(crate) fn end(&self) -> u64 {
        self.offset + 64 + self.payload + 32
    }
}

/// The frames of a record file, in order.
pub(crate) fn frames(path: &Path) -> Vec<Frame> {
    let bytes = fs::read(path).unwrap();
    let mut frames = Vec::new();
    let mut offset = 128;
    while bytes.get(offset..offset + 4) == Some(b"hfr\x01") {
        let number = |at: usize| u64::from(u32::from_le_bytes(bytes[offset + at..offset + at + 4].try_into().unwrap()));
        let revision = u64::from_le_bytes(bytes[offset + 16..offset + 24].try_into().unwrap());
        let frame = Frame { offset: offset as u64, kind: bytes[offset + 4], payload: number(8), revision };
        frames.push(frame);
        offset = frame.end() as usize;
    }
    frames
}

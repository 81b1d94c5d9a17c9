//! File systems on loop devices: making, mounting, cutting the power. Everything goes away with its value.
//!
//! The power is cut by the kernel's own shutdown call (`FS_IOC_SHUTDOWN`, `XFS_IOC_GOINGDOWN`), without flushing the
//! log: whatever has not reached the block device by then never does. `xfs_io` makes the call, for both file systems.

use std::ffi::OsStr;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

/// What a suite cannot do without.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    LoopDevices,
    Tool(&'static str),
    Tracing,
}

/// Whether the suite can run; if not, says what is missing.
pub(crate) fn can_run(suite: &str, needs: &[Need]) -> bool {
    match missing(needs) {
        None => true,
        Some(why) => {
            println!("SKIPPED {suite}: {why}");
            false
        }
    }
}

fn missing(needs: &[Need]) -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("it needs root".to_owned());
    }
    needs.iter().find_map(|need| match need {
        Need::LoopDevices if !Path::new("/dev/loop-control").exists() => Some("there are no loop devices".to_owned()),
        Need::LoopDevices if !succeeds("losetup", &["--find"]) => Some("no loop device is free".to_owned()),
        Need::Tool(tool) if !is_installed(tool) => Some(format!("{tool} is not installed")),
        Need::Tracing if !is_installed("strace") => Some("strace is not installed".to_owned()),
        Need::Tracing if !succeeds("strace", &["-qq", "-e", "trace=none", "true"]) => {
            Some("this machine does not let strace trace".to_owned())
        }
        _ => None,
    })
}

fn is_installed(tool: &str) -> bool {
    let found = |directory: PathBuf| directory.join(tool).is_file();
    std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(found))
}

fn succeeds(program: &str, arguments: &[&str]) -> bool {
    Command::new(program).args(arguments).output().is_ok_and(|output| output.status.success())
}

/// Runs a tool that has to succeed.
pub(crate) fn tool<A: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = A>) -> Output {
    let mut command = Command::new(program);
    let output = command.args(arguments).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// A kind of file system, and how it is mounted.
#[derive(Clone, Copy)]
pub(crate) struct FileSystem {
    pub(crate) name: &'static str,
    kind: &'static str,
    bytes: u64,
    options: &'static str,
}

impl FileSystem {
    pub(crate) const EXT4: Self = Self { name: "ext4", kind: "ext4", bytes: 128 << 20, options: "loop" };
    pub(crate) const EXT4_NO_AUTO_ALLOC: Self =
        Self { name: "ext4 noauto_da_alloc", kind: "ext4", bytes: 128 << 20, options: "loop,noauto_da_alloc" };
    /// mkfs.xfs makes none that is smaller than 300 MB.
    pub(crate) const XFS: Self = Self { name: "xfs", kind: "xfs", bytes: 320 << 20, options: "loop" };

    /// What it takes to use it.
    pub(crate) fn needs(&self) -> [Need; 3] {
        let mkfs = if self.kind == "xfs" { "mkfs.xfs" } else { "mkfs.ext4" };
        [Need::LoopDevices, Need::Tool(mkfs), Need::Tool("xfs_io")]
    }
}

/// A file with a file system in it.
pub(crate) struct Image {
    file: PathBuf,
    file_system: FileSystem,
}

impl Image {
    /// A sparse one.
    pub(crate) fn make(file: PathBuf, file_system: FileSystem) -> Self {
        std::fs::File::create_new(&file).unwrap().set_len(file_system.bytes).unwrap();
        tool(&format!("mkfs.{}", file_system.kind), [OsStr::new("-q"), file.as_os_str()]);
        Self { file, file_system }
    }

    /// An ext4 file system whose own tables and journal have room for good, and whose data has none yet: below it,
    /// space is taken as files grow, and may run out.
    pub(crate) fn make_thin(file: PathBuf, bytes: u64) -> Self {
        let image = Self::make(file, FileSystem { bytes, ..FileSystem::EXT4 });
        let opened = std::fs::OpenOptions::new().write(true).open(&image.file).unwrap();
        // All of it gets room; what is free inside gives it back as soon as it is mounted.
        rustix::fs::fallocate(&opened, rustix::fs::FallocateFlags::empty(), 0, bytes).unwrap();
        image
    }

    pub(crate) fn mount(&self, at: &Path) -> Mount {
        let options = [OsStr::new("-t"), OsStr::new(self.file_system.kind), OsStr::new("-o")];
        Mount::new(options.into_iter().chain([OsStr::new(self.file_system.options), self.file.as_os_str()]), at)
    }
}

/// A mounted file system. The loop device under it ends with it.
pub(crate) struct Mount {
    at: PathBuf,
    is_mounted: bool,
}

impl Mount {
    fn new<'a>(arguments: impl IntoIterator<Item = &'a OsStr>, at: &'a Path) -> Self {
        std::fs::create_dir_all(at).unwrap();
        tool("mount", arguments.into_iter().chain([at.as_os_str()]));
        Self { at: at.to_owned(), is_mounted: true }
    }

    pub(crate) fn tmpfs(at: &Path, bytes: u64) -> Self {
        let options = format!("size={bytes},mode=0700");
        Self::new(["-t", "tmpfs", "-o", &options, "tmpfs"].map(OsStr::new), at)
    }

    pub(crate) fn resize_tmpfs(&self, bytes: u64) {
        let options = format!("remount,size={bytes}");
        tool("mount", [OsStr::new("-o"), OsStr::new(&options), self.at.as_os_str()]);
    }

    pub(crate) fn path(&self) -> &Path {
        &self.at
    }

    /// Bytes that files may still take.
    pub(crate) fn free_bytes(&self) -> u64 {
        let found = rustix::fs::statvfs(&self.at).unwrap();
        found.f_bavail * found.f_frsize
    }

    /// Takes all the room there is; returns the file that has it.
    pub(crate) fn fill(&self) -> PathBuf {
        let path = self.at.join("filler");
        let file = std::fs::File::create_new(&path).unwrap();
        let mut offset = 0;
        let mut piece = self.free_bytes().max(4096);
        // What the file system needs for itself is found by asking for less and less.
        while piece >= 1024 {
            match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), offset, piece) {
                Ok(()) => offset += piece,
                Err(_) => piece /= 2,
            }
        }
        path
    }

    pub(crate) fn unmount(mut self) {
        tool("umount", [&self.at]);
        self.is_mounted = false;
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.is_mounted {
            // Also where something still has it open: it goes when that does.
            let _ = Command::new("umount").arg("--lazy").arg(&self.at).status();
        }
    }
}

/// Holds the scissors open: the cut itself is then one system call away.
pub(crate) struct Cutter {
    xfs_io: Child,
    probe: PathBuf,
}

impl Cutter {
    pub(crate) fn at(mount: &Mount) -> Self {
        let mut command = Command::new("xfs_io");
        command.arg("-x").arg(mount.path()).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        Self { xfs_io: command.spawn().unwrap(), probe: mount.path().join("probe") }
    }

    /// Nothing that is not on the device gets there after this.
    pub(crate) fn cut(mut self) {
        self.xfs_io.stdin.take().unwrap().write_all(b"shutdown\nquit\n").unwrap();
        assert!(self.xfs_io.wait().unwrap().success());
        assert!(std::fs::File::create_new(&self.probe).is_err(), "the file system goes on: it was not shut down");
    }
}

impl Drop for Cutter {
    fn drop(&mut self) {
        let _ = self.xfs_io.kill();
        let _ = self.xfs_io.wait();
    }
}

//! A disk whose power can be cut: an ext4 file system of its own, on a loop device, that is told to
//! shut down.
//!
//! The shutdown is the kernel's own (`EXT4_IOC_SHUTDOWN`, the ioctl that XFS has as "going down"):
//! from that moment on nothing reaches the disk, all calls fail, and what was only in the page
//! cache is gone when the file system is unmounted. Mounting it again replays its journal, as after
//! a power failure. Everything is real but the reason: kernel, file system, fsync.
//!
//! The ioctl has no safe wrapper. `xfs_io -x -c shutdown` would do the same from a package that
//! machines do not have, for the price of a process per cut, while a crowd of nodes is to be cut at
//! one moment; so it is called here, in one line of unsafe code. What the loop device's file lies on
//! plays no part: in memory if possible.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::ioctl::{Setter, opcode};

/// What happens to the journal in memory when the power goes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Cut {
    /// It is lost: the plain power failure.
    JournalLost,
    /// It is written: the power goes just after a commit of the journal.
    JournalWritten,
    /// Everything is written first: the power goes while nothing was to be written.
    AllWritten,
}

impl Cut {
    const fn flags(self) -> u32 {
        match self {
            Self::AllWritten => 0,
            Self::JournalWritten => 1,
            Self::JournalLost => 2,
        }
    }
}

/// `_IOR('X', 125, __u32)`
const SHUTDOWN: rustix::ioctl::Opcode = opcode::read::<u32>(b'X', 125);

/// The disk, mounted on a directory. Unmounted and gone when dropped.
pub struct PowerDisk {
    mounted_on: PathBuf,
    device: String,
    image: PathBuf,
    // Keeps the image.
    _dir: tempfile::TempDir,
}

impl PowerDisk {
    /// Makes an empty one of so many MiB and mounts it on the directory, which is made.
    ///
    /// # Errors
    ///
    /// Why that cannot be done here: root, loop devices and ext4 are needed.
    pub fn new(directory: &Path, mib: u64) -> Result<Self, String> {
        let said = |error: io::Error| error.to_string();
        let dir = crate::replica::data_dir();
        let image = dir.path().join("disk");
        let made = File::create(&image).and_then(|file| file.set_len(mib << 20));
        made.map_err(said)?;
        let name = image.display().to_string();
        run("mkfs.ext4", &["-q", "-F", "-E", "nodiscard", &name])?;
        let device = run("losetup", &["--find", "--show", &name])?;
        let disk = Self {
            mounted_on: directory.to_owned(),
            device: device.trim().to_owned(),
            image,
            _dir: dir,
        };
        std::fs::create_dir_all(directory).map_err(said)?;
        disk.mount()?;
        Ok(disk)
    }

    fn mount(&self) -> Result<(), String> {
        let directory = self.mounted_on.display().to_string();
        let flags = ["-t", "ext4", "-o", "noatime", &self.device, &directory];
        run("mount", &flags).map(drop)
    }

    /// Cuts the power.
    ///
    /// # Panics
    ///
    /// When the kernel refuses.
    pub fn cut(&self, cut: Cut) {
        let directory = File::open(&self.mounted_on).expect("the disk is mounted");
        // SAFETY: the number is that of ext4's shutdown, which reads one u32 from the address.
        let done = unsafe {
            let flags = Setter::<SHUTDOWN, u32>::new(cut.flags());
            rustix::ioctl::ioctl(&directory, flags)
        };
        done.expect("a mounted ext4 can be shut down");
    }

    /// Gives it power again, once nobody has a file open on it: what is found on it now is what had
    /// reached it.
    ///
    /// # Panics
    ///
    /// When it cannot be mounted.
    pub fn power_up(&self) {
        let directory = self.mounted_on.display().to_string();
        let result = run("umount", &[&directory])
            .and_then(|_| self.wait_released())
            .and_then(|()| self.mount());
        result.unwrap_or_else(|why| panic!("{why}"));
    }

    /// Waits until the file system is gone everywhere. A process with a mount namespace of its own
    /// (`ip -netns` makes one) has a copy of every mount for as long as it runs, and mounting the
    /// device again meanwhile would give back the file system that was shut down.
    fn wait_released(&self) -> Result<(), String> {
        let begin = Instant::now();
        loop {
            let mut exclusive = File::options();
            exclusive
                .read(true)
                .custom_flags(rustix::fs::OFlags::EXCL.bits().cast_signed());
            match exclusive.open(&self.device) {
                Ok(_) => return Ok(()),
                Err(error) if begin.elapsed() > RELEASE_PATIENCE => {
                    return Err(format!("{} is in use: {error}", self.device));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }
}

/// Far longer than a command of the tests runs.
const RELEASE_PATIENCE: Duration = Duration::from_secs(60);

impl Drop for PowerDisk {
    fn drop(&mut self) {
        // Lazily: whoever still has files open on it is ended soon.
        let _ = Command::new("umount")
            .arg("-l")
            .arg(&self.mounted_on)
            .status();
        let _ = run("losetup", &["--detach", &self.device]);
        if std::thread::panicking() {
            let kept = std::env::temp_dir().join(format!("wallaby-disk-{}", std::process::id()));
            if std::fs::copy(&self.image, &kept).is_ok() {
                println!("a disk is kept in {}", kept.display());
            }
        }
    }
}

/// Runs a command to its end; its output, or what is wrong.
fn run(command: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(command).args(arguments).output();
    let output = output.map_err(|error| format!("{command}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let error = String::from_utf8_lossy(&output.stderr);
    Err(format!("{command}: {}", error.trim_end()))
}

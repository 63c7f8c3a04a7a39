//! A disk whose power can be cut.

use std::path::PathBuf;

use tempfile::TempDir;

use crate::common::*;

/// A file system in a file. Its page cache is not in the file, so unsynced data is lost when the power is cut.
pub struct Disk {
    dir: TempDir,
    images: usize,
    mounted: Option<PathBuf>,
}

impl Disk {
    /// Fails with the reason if this machine cannot mount one.
    pub fn new() -> Result<Self, String> {
        let mut disk = Self { dir: tempfile::tempdir().unwrap(), images: 0, mounted: None };
        let image = disk.image();
        std::fs::File::create(&image).unwrap().set_len(256 << 20).unwrap();
        output_of("mkfs.ext4", &["-q", "-F", image.to_str().unwrap()])?;
        disk.mount()?;
        Ok(disk)
    }

    fn image(&self) -> PathBuf {
        self.dir.path().join(format!("image-{}", self.images))
    }

    fn mount(&mut self) -> Result<(), String> {
        let (image, at) = (self.image(), self.dir.path().join(format!("mounted-{}", self.images)));
        std::fs::create_dir(&at).unwrap();
        output_of("mount", &["-o", "loop", image.to_str().unwrap(), at.to_str().unwrap()])?;
        self.mounted = Some(at);
        Ok(())
    }

    pub fn store(&self) -> PathBuf {
        self.mounted.as_ref().unwrap().join("store")
    }

    fn unmount(&mut self) {
        if let Some(at) = self.mounted.take() {
            output_of("umount", &[at.to_str().unwrap()]).unwrap();
        }
    }

    /// Cuts the power: only what has reached the disk remains.
    pub async fn cut(&mut self, server: TestServer) {
        server.signal(19);
        let image = self.image();
        self.images += 1;
        std::fs::copy(&image, self.image()).unwrap();
        server.kill().await;
        self.unmount();
        std::fs::remove_file(image).unwrap();
        self.mount().unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.unmount();
    }
}

//! A file as words in memory: what is stored there is the kernel's from that moment on, without a system call, and outlives the process
//! however it ends. It does not outlive the machine, unless the kernel has written it back before.
use core::sync::atomic::AtomicU64;
use memmap2::{MmapOptions, MmapRaw};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Words of a file, shared with it.
pub struct Mapping {
    map: MmapRaw,
}

impl Mapping {
    /// Makes a file so many words long and maps all of them. Every block is reserved before: a store into a hole for which the disk has
    /// no room would be a signal that ends the process (mmap(2), SIGBUS).
    pub fn create(file: &File, words: usize) -> io::Result<Mapping> {
        let bytes = words * size_of::<u64>();
        let length = i64::try_from(bytes).map_err(io::Error::other)?;
        // SAFETY: no memory is involved; the descriptor is open as long as `file` is borrowed.
        match unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, length) } {
            0 => Ok(Mapping { map: MmapOptions::new().len(bytes).map_raw(file)? }),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }

    /// The word at an index; None beyond the end.
    pub fn word(&self, at: usize) -> Option<&AtomicU64> {
        if at >= self.map.len() / size_of::<u64>() {
            return None;
        }
        // SAFETY: the mapping is readable, writable and as long as `self` lives; it begins at a page, so each of its words is aligned,
        // and `at` is inside. Whoever else maps the file may change a word at any time, which an atomic allows. Only a file that is
        // cut short meanwhile would fault: it is made by us, readable by our user alone, and locked.
        Some(unsafe { &*self.map.as_ptr().cast::<AtomicU64>().add(at) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::sync::atomic::Ordering::Relaxed;
    use std::os::unix::fs::FileExt;

    #[test]
    fn what_is_stored_can_be_read_from_the_file_at_once() {
        let file = tempfile::tempfile().unwrap();
        let mapping = Mapping::create(&file, 600).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 4800);
        mapping.word(599).unwrap().store(0x1122_3344_5566_7788, Relaxed);
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, 599 * 8).unwrap();
        assert_eq!(u64::from_ne_bytes(bytes), 0x1122_3344_5566_7788);
        assert!(mapping.word(600).is_none());
    }
}

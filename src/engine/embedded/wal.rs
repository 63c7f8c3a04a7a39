//! Inspects a write-ahead log before SQLite reads it.
//!
//! SQLite reads a log up to its last whole commit and does not report what comes after. After a crash that is right: an
//! unfinished write was never confirmed. After damage it is wrong: confirmed commits would be lost without notice. This
//! module tells the two apart, by the format that SQLite documents
//! (<https://sqlite.org/fileformat2.html#the_write_ahead_log>).

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

/// What a write-ahead log holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wal {
    /// There is none, or nothing in it.
    Empty,
    /// Whole commits only.
    Whole,
    /// After the last whole commit there is an unfinished one, which was never confirmed.
    Torn {
        /// Pages of the unfinished commit.
        pages: usize,
    },
    /// There is a commit that cannot be read.
    Damaged {
        /// Where, in bytes.
        at: u64,
        /// Whether more was written after the end of that commit: then it had been synced. Otherwise a stop of the
        /// machine may have left it half written, in any order.
        confirmed: bool,
    },
}

const HEADER: usize = 32;
const FRAME_HEADER: usize = 24;

/// SQLite's checksum, over a chain of frames.
#[derive(Clone, Copy, PartialEq, Eq)]
struct WalChecksum(u32, u32);

impl WalChecksum {
    fn stored(bytes: &[u8], at: usize) -> Self {
        Self(word(bytes, at), word(bytes, at + 4))
    }

    fn over(mut self, bytes: &[u8], big_endian: bool) -> Self {
        let read = if big_endian { u32::from_be_bytes } else { u32::from_le_bytes };
        for pair in bytes.chunks_exact(8) {
            let (first, second) = pair.split_at(4);
            self.0 = self.0.wrapping_add(read(first.try_into().expect("4 bytes"))).wrapping_add(self.1);
            self.1 = self.1.wrapping_add(read(second.try_into().expect("4 bytes"))).wrapping_add(self.0);
        }
        self
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn salt(bytes: &[u8], at: usize) -> u64 {
    u64::from(word(bytes, at)) << 32 | u64::from(word(bytes, at + 4))
}

/// Reads up to a whole buffer. Returns how many bytes there were.
fn fill(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match from.read(&mut buffer[filled..])? {
            0 => break,
            read => filled += read,
        }
    }
    Ok(filled)
}

/// Inspects the log in this file.
pub(super) fn inspect(path: &Path) -> io::Result<Wal> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Wal::Empty),
        Err(error) => return Err(error),
    };
    inspect_bytes(BufReader::with_capacity(1 << 18, file))
}

fn inspect_bytes(mut file: impl Read) -> io::Result<Wal> {
    let mut header = [0; HEADER];
    if fill(&mut file, &mut header)? < HEADER {
        return Ok(Wal::Empty);
    }
    if header == [0; HEADER] && is_zero(&mut file)? {
        // It was made and never used.
        return Ok(Wal::Empty);
    }
    let Some(chain) = FrameChain::begin(&header) else {
        return Ok(Wal::Damaged { at: 0, confirmed: true });
    };
    chain.follow(file)
}

fn is_zero(file: &mut impl Read) -> io::Result<bool> {
    let mut bytes = vec![0; 1 << 16];
    loop {
        match fill(file, &mut bytes)? {
            0 => return Ok(true),
            some if bytes[..some].iter().any(|byte| *byte != 0) => return Ok(false),
            _ => {}
        }
    }
}

/// The frames of a log, each with a checksum over all before it.
struct FrameChain {
    big_endian: bool,
    page: usize,
    salt: u64,
    checksum: WalChecksum,
}

impl FrameChain {
    /// Reads the header of a log; `None` if it is damaged.
    fn begin(header: &[u8; HEADER]) -> Option<Self> {
        let magic = word(header, 0);
        let big_endian = magic & 1 == 1;
        let page = word(header, 8) as usize;
        let is_known = magic & !1 == 0x377f_0682 && page.is_power_of_two() && (512..=65_536).contains(&page);
        let checksum = WalChecksum(0, 0).over(&header[..24], big_endian);
        let is_whole = is_known && checksum == WalChecksum::stored(header, 24);
        is_whole.then(|| Self { big_endian, page, salt: salt(header, 16), checksum })
    }

    /// Whether a frame continues the chain.
    fn accept(&mut self, frame: &[u8]) -> bool {
        let (head, page) = (&frame[..8], &frame[FRAME_HEADER..]);
        let checksum = self.checksum.over(head, self.big_endian).over(page, self.big_endian);
        let accepted = salt(frame, 8) == self.salt && checksum == WalChecksum::stored(frame, 16);
        if accepted {
            self.checksum = checksum;
        }
        accepted
    }

    /// Whether a frame behind a broken chain was written in this round of the file, perhaps with a damaged bit. The
    /// salts of frames of earlier rounds differ in many bits.
    fn is_of_this_round(&self, frame: &[u8]) -> bool {
        (salt(frame, 8) ^ self.salt).count_ones() <= 1
    }

    fn follow(mut self, mut file: impl Read) -> io::Result<Wal> {
        let mut frame = vec![0; FRAME_HEADER + self.page];
        let mut at = HEADER as u64;
        // Where the chain broke, and how many frames of this round follow.
        let mut broken: Option<(u64, usize)> = None;
        let mut ends_commit = false;
        while fill(&mut file, &mut frame)? == frame.len() {
            if broken.is_some() || !self.accept(&frame) {
                let (start, pages) = broken.get_or_insert((at, 0));
                if self.is_of_this_round(&frame) {
                    *pages += 1;
                    if ends_commit {
                        return Ok(Wal::Damaged { at: *start, confirmed: true });
                    }
                    // The last frame of a commit has the size of the database after it.
                    ends_commit = word(&frame, 4) > 0;
                }
            }
            at += frame.len() as u64;
        }
        Ok(match broken {
            Some((at, _)) if ends_commit => Wal::Damaged { at, confirmed: false },
            Some((_, pages)) if pages > 0 => Wal::Torn { pages },
            _ => Wal::Whole,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rusqlite::Connection;

    /// A log of some commits as SQLite writes it, with room left as after an earlier round.
    fn log() -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.db");
        let connection = Connection::open(&path).unwrap();
        connection.execute_batch("PRAGMA journal_mode=WAL; CREATE TABLE t (x)").unwrap();
        for n in 0..20 {
            connection.execute("INSERT INTO t VALUES (?1)", [format!("{n:01000}")]).unwrap();
        }
        let mut log = std::fs::read(dir.path().join("a.db-wal")).unwrap();
        log.resize(log.len() + 100_000, 0);
        log
    }

    fn used(log: &[u8]) -> usize {
        log.iter().rposition(|byte| *byte != 0).unwrap() + 1
    }

    #[test]
    fn what_sqlite_writes_is_whole() {
        assert_eq!(inspect_bytes(&log()[..]).unwrap(), Wal::Whole);
        assert_eq!(inspect_bytes(&[0; 100][..]).unwrap(), Wal::Empty);
        assert_eq!(inspect_bytes(&[][..]).unwrap(), Wal::Empty);
    }

    #[test]
    fn a_zeroed_range_is_noticed() {
        let log = log();
        let middle = HEADER + 15 * 4120;
        for (from, to) in [(0, 512), (0, 4096), (4096, 8192), (middle, middle + 512)] {
            let mut log = log.clone();
            log[from..to].fill(0);
            let found = inspect_bytes(&log[..]).unwrap();
            assert!(matches!(found, Wal::Damaged { confirmed: true, .. }), "{from}..{to}: {found:?}");
        }
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let log = log();
        let used = used(&log);
        for _ in 0..2_000 {
            let mut log = log.clone();
            let at = fastrand::usize(..used);
            log[at] ^= 1 << fastrand::u32(..8);
            let found = inspect_bytes(&log[..]).unwrap();
            // A flip in the header of the very last frame can make it look unfinished.
            let last_header = used.div_ceil(4120) * 4120 + HEADER - 4120..;
            match found {
                Wal::Damaged { .. } => {}
                Wal::Torn { .. } => assert!(last_header.contains(&at), "{at} of {used}: {found:?}"),
                _ => panic!("{at} of {used}: {found:?}"),
            }
        }
    }

    #[test]
    fn an_unfinished_write_is_no_damage() {
        let mut log = log();
        // A frame whose header came to the disk, and its page did not; it ends no commit.
        let next = (used(&log) - HEADER).div_ceil(4120) * 4120 + HEADER;
        let (salts, page) = (log[16..24].to_vec(), [0, 0, 0, 2, 0, 0, 0, 0]);
        log[next..next + 8].copy_from_slice(&page);
        log[next + 8..next + 16].copy_from_slice(&salts);
        log[next + 16] = 7;
        assert_eq!(inspect_bytes(&log[..]).unwrap(), Wal::Torn { pages: 1 });
    }
}

//! The cache's directory: its users, the current generation of each environment, and what survives a reboot.
//!
//! ```text
//! <cache>/                             each user holds a shared flock on it, if no other user can open it
//! <cache>/users                        each user holds a shared flock on it
//! <cache>/<fingerprint>/open.lock      held while a process opens or closes
//! <cache>/<fingerprint>/users          each user of this build holds a shared flock on it too
//! <cache>/<fingerprint>/layout         the text below, replaced by rename
//! <cache>/<fingerprint>/state/         an environment: its gate, and gen-N/, one LMDB environment a generation
//! <cache>/<fingerprint>/entries-K/
//! <cache>/<fingerprint>/run/           a file for each opening that others may wait for, held by an exclusive flock
//! ```

use super::{
    access::{self, Access},
    first_number,
    lock_files::{OPENING, OpeningLock, UserLocks, sibling_in_use},
};
use crate::{
    error::Error,
    store::{
        os::{
            blocks::write_in_place,
            boot::{boot_id, boot_time_lead, since_boot, since_epoch},
            file_system::FileSystem,
        },
        record::{
            generation_names::{generations, is_generation},
            key::Secret,
        },
    },
};
use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::Duration,
};

/// Raised whenever the stored form changes; part of the fingerprint, so that versions never read each other's files.
const SCHEMA: u32 = 6;

/// The name of the environment of throttle cells and locks.
const STATE: &str = "state";
/// Bytes that stored answers may take, unless said otherwise.
const SIZE: u64 = 1 << 30;

/// How long a closing waits for a process that is opening the directory.
const CLOSING: Duration = Duration::from_secs(2);

/// The fingerprint of a build. Processes whose locks and records fit together have the same one.
fn fingerprint() -> String {
    let libc = if cfg!(target_env = "musl") { "musl" } else { "gnu" };
    format!("v{SCHEMA}-{}-{}-{libc}", std::env::consts::ARCH, usize::BITS)
}

/// The contents of the file `layout`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) secret: [u8; Secret::LEN],
    /// Bytes of `state/`'s map: the same for every process.
    pub(crate) state_size: u64,
    /// Bytes that stored answers may take: the same for every process.
    pub(crate) size: u64,
    pub(crate) shards: u32,
    boot: String,
    /// Machine time is the time since the machine started plus this, in ns.
    pub(crate) offset: u64,
    /// The last user synced everything, at the machine time `closed`.
    clean: bool,
    closed: u64,
    /// Every commit is synced, by every user of this boot.
    synced: bool,
    /// The generations at the last opening. Since then, later ones may have taken their places.
    pub(crate) state: u64,
    /// The first sequence number of that generation, see [`first_number`].
    pub(crate) numbers: u64,
    pub(crate) entries: Vec<u64>,
}

impl Layout {
    /// Another generation of `state/` begins. Its numbers are above those of the one before.
    pub(crate) fn begin_state(&mut self, generation: u64) {
        self.state = generation;
        self.leap();
    }

    /// From now on, the numbers are above those that can have been drawn.
    pub(crate) fn leap(&mut self) {
        self.numbers = first_number::after(Some(self.numbers), first_number::calendar());
    }

    /// From now on, the numbers are above one that was drawn. 0: none was.
    pub(crate) fn leap_over(&mut self, last: u64) {
        if last >= self.numbers {
            self.numbers = first_number::after(Some(last), first_number::calendar());
        }
    }

    fn parse(text: &str) -> Option<Layout> {
        let fields: BTreeMap<_, _> = text.lines().filter_map(|line| line.split_once('=')).collect();
        let number = |name: &str| fields.get(name)?.parse::<u64>().ok();
        let shards = u32::try_from(number("shards")?).ok().filter(|shards| (1..=256).contains(shards))?;
        Some(Layout {
            secret: unhex(fields.get("secret")?)?,
            state_size: number("state_size").filter(|&size| is_state_size(size))?,
            size: number("size")?,
            shards,
            boot: fields.get("boot")?.to_string(),
            offset: number("offset")?,
            clean: number("clean")? == 1,
            closed: number("closed")?,
            synced: number("synced")? == 1,
            state: number("state").filter(is_generation)?,
            numbers: number("numbers").filter(|first| (1..=first_number::MOST).contains(first))?,
            entries: (0..shards)
                .map(|shard| number(&format!("entries-{shard}")).filter(is_generation))
                .collect::<Option<_>>()?,
        })
    }

    fn to_text(&self) -> String {
        let secret = self.secret.iter().fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        });
        let mut text = format!(
            "secret={secret}\nstate_size={}\nsize={}\nshards={}\nboot={}\noffset={}\nclean={}\nclosed={}\nsynced={}\nstate={}\nnumbers={}\n",
            self.state_size,
            self.size,
            self.shards,
            self.boot,
            self.offset,
            u8::from(self.clean),
            self.closed,
            u8::from(self.synced),
            self.state,
            self.numbers
        );
        for (shard, generation) in self.entries.iter().enumerate() {
            let _ = writeln!(text, "entries-{shard}={generation}");
        }
        text
    }
}

/// Whether the file of throttle cells and locks may have this size.
pub(crate) fn is_state_size(bytes: u64) -> bool {
    (1 << 20..=1 << 40).contains(&bytes) && bytes.is_multiple_of(64 << 10)
}

fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    let mut out = [0; N];
    if digits.len() != 2 * N {
        return None;
    }
    for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(out)
}

/// The options that an opening asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    pub(crate) state_size: u64,
    /// `None`: as it is, or [`SIZE`].
    pub(crate) size: Option<u64>,
    pub(crate) shards: u32,
    /// Users of other builds are no obstacle.
    pub(crate) mixed: bool,
    /// Every commit is synced.
    pub(crate) sync: bool,
    /// The directory may be on a file system that is not known to do.
    pub(crate) any_file_system: bool,
}

/// The directory of one cache, as opened by this process.
#[derive(Debug)]
pub(crate) struct Directory {
    root: PathBuf,
    home: PathBuf,
    pub(crate) file_system: FileSystem,
    users: UserLocks,
    /// How far the clocks of this process are ahead of the machine's, in ns.
    lead: i64,
    layout: Layout,
}

impl Directory {
    /// Opens the directory and gives `open` the layout, and whether this process is its only user. `open` may replace
    /// generations that turn out to be damaged; the layout it leaves is written down. If the process is alone and is
    /// asked to sync, `open` has synced the files that it found.
    pub(crate) fn open<T>(
        root: &Path,
        wanted: &Wanted,
        open: impl FnOnce(&Directory, &mut Layout, bool) -> Result<T, Error>,
    ) -> Result<(Directory, T), Error> {
        let &Wanted { state_size, size, shards, mixed, sync, any_file_system } = wanted;
        let fail = |reason: String| Error::Open { path: root.to_path_buf(), reason };
        let io = |what: &'static str| move |error: io::Error| fail(format!("{what}: {error}"));
        let Access { directory, file_system, is_private } = access::enter(root, any_file_system).map_err(fail)?;
        let home = root.join(fingerprint());
        access::make_inner(&home).map_err(fail)?;
        if file_system == FileSystem::CopyOnWrite
            && let Err(error) = write_in_place(&home)
        {
            tracing::warn!(
                %error, cache = %root.display(),
                "files cannot be written in place here: a full disk may kill the processes that use the cache"
            );
        }
        if let Some(sibling) = sibling_in_use(root, &home).filter(|_| !mixed) {
            return Err(fail(format!(
                "a process of another build ({sibling}) is using it, and the two would share no locks; stop it, use another \
                 directory, or allow it with `Builder::allow_mixed_builds`"
            )));
        }
        let _opening = OpeningLock::enter(&home, OPENING).map_err(|error| match error.kind() {
            io::ErrorKind::TimedOut => fail(
                "another process has been opening or closing it for ten seconds; is it stopped? (open.lock is held)"
                    .into(),
            ),
            _ => fail(format!("open.lock: {error}")),
        })?;
        let whole = Some(directory).filter(|_| is_private);
        let users = UserLocks::enter(root, &home, whole).map_err(|error| match error.kind() {
            io::ErrorKind::AddrInUse => fail(
                "processes use it whose files have been removed or replaced; stop them first, or use another directory"
                    .into(),
            ),
            _ => io("its users file")(error),
        })?;
        let alone = users.alone;
        let boot = boot_id().map_err(io("the boot id"))?;
        let lead = boot_time_lead().map_err(io("its clock's time name space"))?;
        let path = home.join("layout");
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound && error.kind() != io::ErrorKind::InvalidData => {
                return Err(io("its layout file")(error));
            }
            read => read.ok(),
        };
        let mut layout = match text.as_deref().and_then(Layout::parse) {
            Some(layout) => layout,
            None if !alone => {
                return Err(fail("its layout file is damaged while others use it; stop them first".into()));
            }
            None => Layout {
                secret: rand::random(),
                state_size,
                size: SIZE,
                shards,
                boot: boot.clone(),
                offset: since_epoch().saturating_sub(since_boot(lead)),
                clean: true,
                closed: 0,
                synced: sync,
                state: next_generation(&home.join(STATE)),
                // Only the calendar tells of the numbers that were drawn under a damaged layout.
                numbers: first_number::after(text.as_ref().map(|_| 0), first_number::calendar()),
                entries: (0..shards).map(|shard| next_generation(&entries_path(&home, shard))).collect(),
            },
        };
        if (layout.state_size, layout.shards) != (state_size, shards) {
            tracing::warn!(
                cache = %root.display(), state_size = layout.state_size, shards = layout.shards,
                "the cache was made with other sizes than asked for; those are kept"
            );
        }
        match size {
            Some(size) if alone => layout.size = size,
            Some(size) if size != layout.size => tracing::warn!(
                cache = %root.display(), size = layout.size,
                "others use the cache with another size than asked for; theirs is kept"
            ),
            _ => {}
        }
        if alone && text.is_some() && generations(&home.join(STATE)).all(|found| found < layout.state) {
            tracing::error!(cache = %root.display(), "its state was removed: starting with an empty one");
            layout.begin_state(layout.state + 1);
        }
        // Beside living users the machine has not started anew, whatever the id says: systemd-nspawn makes one up for each
        // of its containers.
        if layout.boot != boot && alone {
            // Files that were written without syncs may be torn after a crash of the machine.
            if !layout.clean && !layout.synced {
                tracing::warn!(cache = %root.display(), "the machine went down unexpectedly: starting with empty files");
                layout.begin_state(next_generation(&home.join(STATE)).max(layout.state + 1));
                for (generation, shard) in layout.entries.iter_mut().zip(0..) {
                    *generation = next_generation(&entries_path(&home, shard)).max(*generation + 1);
                }
            }
            layout.boot = boot;
            // A calendar that has gone back meanwhile must not take machine time back with it.
            layout.offset = since_epoch().max(layout.closed).saturating_sub(since_boot(lead));
        }
        let mut directory =
            Directory { root: root.to_path_buf(), home, file_system, users, lead, layout: layout.clone() };
        let opened = open(&directory, &mut layout, alone)?;
        layout.clean = false;
        layout.synced = sync && (alone || layout.synced);
        // Mostly the file says so already: then a full disk is no reason to refuse.
        if text.is_none_or(|text| text != layout.to_text()) {
            directory.write(&layout).map_err(io("its layout file cannot be written"))?;
        }
        directory.layout = layout;
        if alone {
            directory.users.let_others_in().map_err(io("its users file"))?;
        }
        Ok((directory, opened))
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// What makes machine time of this process's time since boot, in ns.
    pub(crate) fn offset(&self) -> u64 {
        self.layout.offset.saturating_add_signed(self.lead.saturating_neg())
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn state_path(&self) -> PathBuf {
        self.home.join(STATE)
    }

    pub(crate) fn entries_path(&self, shard: u32) -> PathBuf {
        entries_path(&self.home, shard)
    }

    /// The directory of the instances' files.
    pub(crate) fn run_path(&self) -> PathBuf {
        self.home.join("run")
    }

    /// Called when this process closes the cache. If it is the last user, `sync` makes the files safe to keep over a
    /// reboot, which is then written down. No process opens the cache until the result is dropped, which happens after
    /// the files are closed.
    pub(crate) fn close(&self, sync: impl FnOnce() -> bool) -> Option<OpeningLock> {
        let opening = OpeningLock::enter(&self.home, CLOSING).ok()?;
        if self.users.are_gone(&self.home) && sync() {
            let closed = since_boot(self.lead).saturating_add(self.layout.offset);
            // Others may have written it since.
            let written = fs::read_to_string(self.home.join("layout")).ok().and_then(|text| Layout::parse(&text));
            let _ = self.write(&Layout { clean: true, closed, ..written.unwrap_or_else(|| self.layout.clone()) });
        }
        Some(opening)
    }

    fn write(&self, layout: &Layout) -> io::Result<()> {
        let new = self.home.join("layout.new");
        fs::write(&new, layout.to_text())?;
        File::open(&new)?.sync_all()?;
        fs::rename(new, self.home.join("layout"))?;
        File::open(&self.home)?.sync_all()
    }
}

fn entries_path(home: &Path, shard: u32) -> PathBuf {
    home.join(format!("entries-{shard}"))
}

fn next_generation(environment: &Path) -> u64 {
    generations(environment).max().map_or(0, |latest| latest + 1)
}

#[cfg(test)]
mod tests;

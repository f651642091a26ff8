//! The cache's directory: its users, the current generation of each environment, and what survives a reboot.
//!
//! ```text
//! <cache>/                             each user holds a shared flock
//! <cache>/<fingerprint>/open.lock      held while a process opens or closes
//! <cache>/<fingerprint>/users          each user of this build holds a shared flock on it too
//! <cache>/<fingerprint>/layout         the text below, replaced by rename
//! <cache>/<fingerprint>/state-N/       one LMDB environment a generation: data.mdb, lock.mdb, gate
//! <cache>/<fingerprint>/entries-K-N/
//! <cache>/<fingerprint>/run/           a file for each opening that others may wait for, held by an exclusive flock
//! ```

use super::{
    first_number,
    lock_files::{OPENING, OpeningLock, UserLocks, sibling_in_use},
};
use crate::{
    error::Error,
    store::{
        os::{
            boot::{boot_id, since_boot, since_epoch},
            file_system::{FileSystem, file_system},
        },
        record::key::Secret,
    },
};
use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

/// Raised whenever the stored form changes; part of the fingerprint, so that versions never read each other's files.
const SCHEMA: u32 = 6;

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
    pub(crate) shards: u32,
    boot: String,
    /// Machine time is the time since boot plus this, in ns.
    pub(crate) offset: u64,
    /// The last user synced everything, at the machine time `closed`.
    clean: bool,
    closed: u64,
    /// Every commit is synced, by every user of this boot.
    synced: bool,
    pub(crate) state: u64,
    /// The first sequence number of that generation, see [`first_number`].
    pub(crate) numbers: u64,
    pub(crate) entries: Vec<u64>,
}

impl Layout {
    fn parse(text: &str) -> Option<Layout> {
        let fields: BTreeMap<_, _> = text.lines().filter_map(|line| line.split_once('=')).collect();
        let number = |name: &str| fields.get(name)?.parse::<u64>().ok();
        let shards = u32::try_from(number("shards")?).ok().filter(|shards| (1..=256).contains(shards))?;
        Some(Layout {
            secret: unhex(fields.get("secret")?)?,
            state_size: number("state_size").filter(|&size| is_state_size(size))?,
            shards,
            boot: fields.get("boot")?.to_string(),
            offset: number("offset")?,
            clean: number("clean")? == 1,
            closed: number("closed")?,
            synced: number("synced")? == 1,
            state: number("state")?,
            numbers: number("numbers").filter(|first| (1..=first_number::MOST).contains(first))?,
            entries: (0..shards).map(|shard| number(&format!("entries-{shard}"))).collect::<Option<_>>()?,
        })
    }

    fn to_text(&self) -> String {
        let secret = self.secret.iter().fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        });
        let mut text = format!(
            "secret={secret}\nstate_size={}\nshards={}\nboot={}\noffset={}\nclean={}\nclosed={}\nsynced={}\nstate={}\nnumbers={}\n",
            self.state_size,
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
    pub(crate) shards: u32,
    /// Users of other builds are no obstacle.
    pub(crate) mixed: bool,
    /// Every commit is synced.
    pub(crate) sync: bool,
}

/// The directory of one cache, as opened by this process.
#[derive(Debug)]
pub(crate) struct Directory {
    root: PathBuf,
    home: PathBuf,
    pub(crate) file_system: FileSystem,
    users: UserLocks,
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
        let &Wanted { state_size, shards, mixed, sync } = wanted;
        let fail = |reason: String| Error::Open { path: root.to_path_buf(), reason };
        let io = |what: &'static str| move |error: io::Error| fail(format!("{what}: {error}"));
        let (whole, file_system) = check_root(root).map_err(fail)?;
        let home = root.join(fingerprint());
        make_private(&home).map_err(io("its inner directory cannot be made"))?;
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
        let users = UserLocks::enter(root, &home, whole).map_err(|error| match error.kind() {
            io::ErrorKind::AddrInUse => fail(
                "processes use it whose files have been removed or replaced; stop them first, or use another directory"
                    .into(),
            ),
            _ => io("its users file")(error),
        })?;
        let alone = users.alone;
        let boot = boot_id().map_err(io("the boot id"))?;
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
                shards,
                boot: boot.clone(),
                offset: since_epoch().saturating_sub(since_boot()),
                clean: true,
                closed: 0,
                synced: sync,
                state: fresh_number(&home),
                // Only the calendar tells of the numbers that were drawn under a damaged layout.
                numbers: first_number::after(text.as_ref().map(|_| 0), first_number::calendar()),
                entries: vec![fresh_number(&home); shards as usize],
            },
        };
        let found = layout.state;
        if (layout.state_size, layout.shards) != (state_size, shards) {
            tracing::warn!(
                cache = %root.display(), state_size = layout.state_size, shards = layout.shards,
                "the cache was made with other sizes than asked for; those are kept"
            );
        }
        if alone && text.is_some() && !home.join(format!("state-{}", layout.state)).join("data.mdb").exists() {
            tracing::error!(cache = %root.display(), "its state was removed: starting with an empty one");
            layout.state = next_number(&home, layout.state);
        }
        if layout.boot != boot {
            // Files that were written without syncs may be torn after a crash of the machine.
            if !layout.clean && !layout.synced {
                tracing::warn!(cache = %root.display(), "the machine went down unexpectedly: starting with empty files");
                layout.state = next_number(&home, layout.state);
                layout.entries.fill(fresh_number(&home));
            }
            layout.boot = boot;
            // A calendar that has gone back meanwhile must not take machine time back with it.
            layout.offset = since_epoch().max(layout.closed).saturating_sub(since_boot());
        }
        let mut directory = Directory { root: root.to_path_buf(), home, file_system, users, layout: layout.clone() };
        let opened = open(&directory, &mut layout, alone)?;
        if layout.state != found {
            layout.numbers = first_number::after(Some(layout.numbers), first_number::calendar());
        }
        layout.clean = false;
        layout.synced = sync && (alone || layout.synced);
        // Mostly the file says so already: then a full disk is no reason to refuse.
        if text.is_none_or(|text| text != layout.to_text()) {
            directory.write(&layout).map_err(io("its layout file cannot be written"))?;
        }
        directory.layout = layout;
        if alone {
            directory.remove_old_generations();
            directory.users.let_others_in().map_err(io("its users file"))?;
        }
        Ok((directory, opened))
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn state_path(&self, generation: u64) -> PathBuf {
        self.home.join(format!("state-{generation}"))
    }

    pub(crate) fn entries_path(&self, shard: usize, generation: u64) -> PathBuf {
        self.home.join(format!("entries-{shard}-{generation}"))
    }

    /// The directory of the instances' files.
    pub(crate) fn run_path(&self) -> PathBuf {
        self.home.join("run")
    }

    /// A number that no generation has had, and greater than the given one.
    pub(crate) fn next_number(&self, generation: u64) -> u64 {
        next_number(&self.home, generation)
    }

    /// Called when this process closes the cache. If it is the last user, `sync` makes the files safe to keep over a
    /// reboot, which is then written down. No process opens the cache until the result is dropped, which happens after
    /// the files are closed.
    pub(crate) fn close(&self, sync: impl FnOnce() -> bool) -> Option<OpeningLock> {
        let opening = OpeningLock::enter(&self.home, Duration::from_millis(200)).ok()?;
        if self.users.are_gone(&self.home) && sync() {
            let closed = since_boot().saturating_add(self.layout.offset);
            let _ = self.write(&Layout { clean: true, closed, ..self.layout.clone() });
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

    fn remove_old_generations(&self) {
        let layout = &self.layout;
        let mut current = vec![self.state_path(layout.state)];
        current
            .extend(layout.entries.iter().enumerate().map(|(shard, &generation)| self.entries_path(shard, generation)));
        for entry in fs::read_dir(&self.home).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let is_generation = ["state-", "entries-"].iter().any(|kind| name.to_string_lossy().starts_with(kind));
            if is_generation && !current.contains(&entry.path()) {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }
}

fn make_private(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Creates the root if need be; the error says why it cannot be used.
fn check_root(root: &Path) -> Result<(File, FileSystem), String> {
    match make_private(root) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err("it is not a directory; name another path".into());
        }
        Err(error) => return Err(format!("the directory cannot be made: {error}")),
    }
    let directory = File::open(root).map_err(|error| format!("the directory cannot be read: {error}"))?;
    let facts = directory.metadata().map_err(|error| error.to_string())?;
    let me = rustix::process::geteuid().as_raw();
    if facts.uid() != me {
        return Err(format!(
            "it belongs to user {}, this process runs as {me}; whoever writes the files could crash us",
            facts.uid()
        ));
    }
    if facts.permissions().mode() & 0o022 != 0 {
        return Err("other users may write to it; give it mode 0700 or name another path".into());
    }
    match file_system(&directory).map_err(|error| format!("the file system cannot be told: {error}"))? {
        FileSystem::Network(kind) => Err(format!(
            "it is on a network file system ({kind}), where locks and shared memory do not work; use a local disk"
        )),
        local => Ok((directory, local)),
    }
}

fn fresh_number(home: &Path) -> u64 {
    let used = fs::read_dir(home).into_iter().flatten().flatten();
    let highest = used.filter_map(|entry| entry.file_name().to_str()?.rsplit_once('-')?.1.parse::<u64>().ok()).max();
    highest.map_or(0, |highest| highest.saturating_add(1))
}

fn next_number(home: &Path, generation: u64) -> u64 {
    fresh_number(home).max(generation.saturating_add(1))
}

#[cfg(test)]
mod tests;

//! The change from one generation of an environment to the next.

use super::{
    gate::{Gate, Held},
    generation::Generation,
    generations::{Changing, Generations},
    opening::{self, Options},
    transaction::Reader,
};
use crate::error::Error;
use std::{
    fs::File,
    time::{Duration, Instant},
};

/// How long a rotation waits for the gate.
const AT_THE_GATE: Duration = Duration::from_millis(100);
/// How long an opening waits for another process that replaces damaged files.
const OPENING: Duration = Duration::from_secs(2);

/// Opens the current generation, whichever that is by the time.
/// `held`: the gate, if this thread has it.
pub(super) fn open_current(
    generations: &Generations,
    options: &Options,
    gate: &Gate,
    held: Option<&Held<'_>>,
) -> Result<Generation, Error> {
    loop {
        let number = gate.generation();
        gate.check()?;
        let opened = opening::open_beside(generations, number, options, gate, held)
            .and_then(|opened| Generation::new(generations, number, options, opened));
        // Whoever holds a generation that is current keeps its files there.
        if gate.generation() == number {
            return opened;
        }
    }
}

/// Opens the current generation or, if it is damaged, a new one.
pub(super) fn open_or_replace(generations: &Generations, options: &Options, gate: &Gate) -> Result<Generation, Error> {
    if gate.described().map_size != options.map_size as u64 {
        // It is not the files that are wrong.
        return Err(Error::Damaged);
    }
    let deadline = Instant::now() + OPENING;
    loop {
        let number = gate.generation();
        match open_current(generations, options, gate, None) {
            Err(Error::Damaged) => {}
            opened => return opened,
        }
        gate.condemn(number);
        if let Some(right_to_change) = generations.begin_change()?
            // Another process may have replaced it meanwhile.
            && gate.is_condemned()
            && let Some((new, _held)) = make_next(generations, options, gate, None, &right_to_change)?
        {
            return Ok(new);
        }
        // Another process is about to replace it, or is at the gate.
        if Instant::now() >= deadline {
            return Err(Error::Busy);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Makes a new generation and, under the gate, the current one. Returns the gate with it, so that the caller goes over to
/// it before any write. `None`: the gate could not be had.
pub(super) fn make_next<'a>(
    generations: &Generations,
    options: &Options,
    gate: &'a Gate,
    old: Option<&Generation>,
    changing: &Changing,
) -> Result<Option<(Generation, Held<'a>)>, Error> {
    let number = generations.next(gate.generation());
    generations.make(changing, number)?;
    let made = opening::open_alone(generations, number, options)
        .and_then(|opened| Generation::new(generations, number, options, opened))
        .and_then(|new| {
            let Some(held) = gate.lock_whatever_its_state(AT_THE_GATE)? else { return Ok(None) };
            let carry_over = |reader: Option<&Reader<'_>>| new.fill(gate, |txn| (options.carry_over)(reader, txn));
            let carried = match old.filter(|_| !gate.is_condemned()) {
                Some(old) => old.read_writing(|reader| carry_over(Some(reader))),
                None => Err(Error::Damaged),
            };
            match carried {
                Err(Error::Damaged) => carry_over(None)?,
                carried => carried?,
            }
            if options.sync {
                new.sync()?;
                File::open(generations.environment())?.sync_all()?;
            }
            if gate.is_condemned() {
                gate.begin_after_loss();
            }
            gate.go_on_with(number, &new.files);
            // From here on, nothing may fail: others use it. A page that is not on the disk yet is found there by its files.
            if options.sync {
                let _ = gate.sync();
            }
            Ok(Some((new, held)))
        });
    if !matches!(made, Ok(Some(_))) {
        let _ = std::fs::remove_dir_all(generations.path(number));
    }
    made
}

//! What becomes of a request: hit, refresh, lead, follow, or alone.

use super::{
    codec::{Access, Asked, Codec, Replay},
    core::{Bridge, Core, Stored, over_for, standing},
    marks::Mark,
    status::CacheStatus,
    xfetch::{self, Cost},
};
use crate::{
    error::Error,
    lock::{Acquire, AcquireError, Acquiring, Guard},
    store::{Event, Flight, Hit, Key, Kind, Lead, Life, Outcome, Role, SharedValue},
    time::nanos,
};
use std::{sync::Arc, time::Duration};

/// What is to be done about a request.
pub(super) enum Plan<Out, D> {
    Hit(Out),
    /// The request is answered, and the answer is to be refreshed in the background.
    Refresh(Out, Box<Computation>),
    /// The request computes the answer for all that want it.
    Lead(Box<Computation>, Bridge<D>),
    /// Another request computes the answer.
    Follow(Arc<Flight>, Bridge<D>),
    /// The service serves this request alone. `marked`: so it does for all requests of the name.
    Alone {
        bridge: Bridge<D>,
        marked: bool,
    },
}

impl<Out, D> Plan<Out, D> {
    pub(super) fn alone() -> Self {
        Plan::Alone { bridge: None, marked: false }
    }
}

/// A computation that is about to begin: the only one of its key in this process and, with the claim, on the machine.
pub(super) struct Computation {
    // Dropped before the lead, as the next leader must find it free.
    pub(super) claim: Claim,
    pub(super) lead: Lead,
    pub(super) place: Place,
    /// What is to be replaced.
    pub(super) replaces: Option<Replaced>,
    pub(super) mark: Option<Mark>,
}

impl Computation {
    /// Whether it is the only one on the machine.
    pub(super) fn is_claimed(&self) -> bool {
        matches!(self.claim, Claim::Held(_))
    }
}

/// What a computation knows of the answer that it replaces.
#[derive(Clone, Copy)]
pub(super) struct Replaced {
    pub(super) life: Life,
    pub(super) cost: Cost,
}

impl Replaced {
    fn of<D>(stored: &Stored<D>) -> Option<Replaced> {
        let entry = &stored.entry;
        Some(Replaced { life: entry.life, cost: Cost { mean: entry.cost, spread: entry.spread } })
    }
}

pub(super) enum Claim {
    Asked(Box<Acquiring>),
    /// Released when it is dropped.
    Held(#[allow(dead_code)] Guard),
    /// The cache has failed, or the holder of the claim takes too long.
    Without,
}

/// Where an answer is kept.
#[derive(Clone)]
pub(super) struct Place {
    pub(super) key: Key,
    pub(super) name: Box<[u8]>,
    /// The key of the name without a variant, where this is one.
    of: Option<(Key, Box<[u8]>)>,
    variant: Vec<u8>,
}

impl Place {
    fn plain(key: Key, name: &[u8]) -> Self {
        Place { key, name: name.into(), of: None, variant: Vec::new() }
    }

    /// The key of the name without its variant.
    pub(super) fn plain_key(&self) -> &Key {
        self.of.as_ref().map_or(&self.key, |(key, _)| key)
    }

    /// Where an answer of this variant goes: to the place it was computed for, or under the plain name if the response
    /// turned out to vary by other fields than the one kept there.
    pub(super) fn for_variant(self, variant: Option<&[u8]>) -> (Key, Box<[u8]>, Option<Key>) {
        match self.of {
            Some((of, _)) if variant == Some(&self.variant) => (self.key, self.name, Some(of)),
            Some((of, name)) => (of, name, None),
            None => (self.key, self.name, None),
        }
    }
}

/// What is known of a request when its plan is made.
struct Asking<'a, H> {
    key: &'a Key,
    name: &'a [u8],
    asked: &'a Asked<'a, H>,
    place: &'a dyn Fn() -> Place,
}

/// The plan for one key; or the variant that the request wants instead.
type Planned<Out, D> = Result<Plan<Out, D>, Vec<u8>>;

impl<C> Core<C> {
    /// Decides what to do about a request. An error of the cache is a reason to go alone.
    pub(super) fn plan<Req, Res>(&self, name: &[u8], asked: &Asked<'_, C::Head>) -> Plan<C::Response, C::Decoded>
    where
        C: Codec<Req, Res>,
    {
        self.try_plan(name, asked).unwrap_or_else(|_| {
            self.scope.note(Event::CacheFailed);
            Plan::alone()
        })
    }

    fn try_plan<Req, Res>(
        &self,
        name: &[u8],
        asked: &Asked<'_, C::Head>,
    ) -> Result<Plan<C::Response, C::Decoded>, Error>
    where
        C: Codec<Req, Res>,
    {
        let key = &self.key(name);
        let place = &|| Place::plain(*key, name);
        let suffix = match self.plan_at(&Asking { key, name, asked, place })? {
            Ok(plan) => return Ok(plan),
            Err(suffix) => suffix,
        };
        // The answer under the plain name is that of another variant. This one has a name of its own, and of its own
        // kind, so that no request's name can spell it.
        let full = &[name, &suffix].concat()[..];
        let variant = &self.scope.key(Kind::Variant, full);
        let place =
            &|| Place { key: *variant, name: full.into(), of: Some((*key, name.into())), variant: suffix.clone() };
        Ok(self.plan_at(&Asking { key: variant, name: full, asked, place })?.unwrap_or(Plan::alone()))
    }

    fn plan_at<Req, Res>(&self, asking: &Asking<'_, C::Head>) -> Result<Planned<C::Response, C::Decoded>, Error>
    where
        C: Codec<Req, Res>,
    {
        let &Asking { key, name, asked, .. } = asking;
        let (sequence, old) = match self.read(key, name)? {
            Err(sequence) => (sequence, None),
            Ok(found) => {
                let Hit { value: stored, now, .. } = &found;
                let (life, now) = (stored.entry.life, *now);
                let status = |ttl| match life.is_fresh(now) {
                    true => CacheStatus::Hit { ttl },
                    false => CacheStatus::Stale { over: over_for(&life, now) },
                };
                match self.replay(stored, asked, now, status) {
                    Replay::Answer(answer) if life.is_fresh(now) => {
                        return Ok(Ok(self.hit(asking, &found, answer)?));
                    }
                    Replay::Other(suffix) => return Ok(Err(suffix)),
                    Replay::Answer(answer) => (self.scope.purge_sequence(key)?, Some((found.value, answer, now))),
                    Replay::Unusable => (self.scope.purge_sequence(key)?, None),
                }
            }
        };
        let mark = self.mark(key)?;
        let mut bridge = None;
        let mut replaces = None;
        if let Some((stored, answer, now)) = old {
            replaces = Replaced::of(&stored);
            let life = stored.entry.life;
            let backing_off = Mark::is_backing_off(mark, now) && now < life.if_error;
            // The answer to a request that identifies its caller may be for that caller alone, so it cannot refresh for
            // others.
            if asked.access != Access::Personal
                && mark != Some(Mark::Uncacheable)
                && (now < life.revalidate || backing_off)
            {
                return Ok(Ok(self.serve_stale(asking, sequence, (answer, replaces, mark), backing_off)));
            }
            bridge = Some(stored);
        }
        let marked = mark == Some(Mark::Uncacheable);
        if asked.access == Access::Personal || marked {
            return Ok(Ok(Plan::Alone { bridge, marked }));
        }
        Ok(Ok(match self.join(key, sequence) {
            Role::Follow(flight) => Plan::Follow(flight, bridge),
            Role::Lead(lead) => Plan::Lead(self.computation(asking, lead, (replaces, mark), Duration::MAX), bridge),
            Role::Ended(Outcome::Kept(shared)) => return self.ended(asking, &shared, bridge),
            Role::Ended(_) => Plan::Alone { bridge, marked },
        }))
    }

    fn join(&self, key: &Key, sequence: u64) -> Role {
        let flights = &self.scope.handle().shared.flights;
        flights.join(key.hash, sequence, self.now(), nanos(self.follow_at_most))
    }

    fn computation<H>(
        &self,
        asking: &Asking<'_, H>,
        lead: Lead,
        (replaces, mark): (Option<Replaced>, Option<Mark>),
        patience: Duration,
    ) -> Box<Computation> {
        // A computation that began before a purge, or too long ago in this process, is not waited for.
        let patience = if lead.is_overdue() { Duration::ZERO } else { patience };
        let claim = Acquire::claim(&self.scope, asking.key, lead.sequence(), patience).acquire();
        Box::new(Computation { claim: Claim::Asked(Box::new(claim)), lead, place: (asking.place)(), replaces, mark })
    }

    /// An answer that was computed and is not on disk yet, so that purges have to be checked here.
    fn ended<Req, Res>(
        &self,
        &Asking { key, name, asked, .. }: &Asking<'_, C::Head>,
        shared: &SharedValue,
        bridge: Bridge<C::Decoded>,
    ) -> Result<Planned<C::Response, C::Decoded>, Error>
    where
        C: Codec<Req, Res>,
    {
        let alone = Plan::Alone { bridge, marked: false };
        let Some(stored) = shared.downcast_ref::<Stored<C::Decoded>>() else { return Ok(Ok(alone)) };
        if !self.scope.is_current(key, name, &stored.entry)? {
            return Ok(Ok(alone));
        }
        Ok(match self.replay(stored, asked, self.now(), |ttl| CacheStatus::Hit { ttl }) {
            Replay::Answer(answer) => {
                self.scope.note(Event::Hit);
                Ok(Plan::Hit(answer))
            }
            Replay::Other(suffix) => Err(suffix),
            Replay::Unusable => Ok(alone),
        })
    }

    /// A hit. XFetch may choose it to refresh the answer.
    fn hit<Req, Res>(
        &self,
        asking: &Asking<'_, C::Head>,
        found: &Hit<Stored<C::Decoded>>,
        answer: C::Response,
    ) -> Result<Plan<C::Response, C::Decoded>, Error>
    where
        C: Codec<Req, Res>,
    {
        let Hit { value: stored, now, reads, from_memory } = found;
        self.scope.note(Event::Hit);
        if *from_memory {
            self.scope.note(Event::HitInMemory);
        }
        if let Some(reads) = reads {
            reads.note();
        }
        let standing = standing(&stored.entry, *now);
        let rate = || reads.as_ref().map_or(0.0, |reads| reads.rate(*now, standing.life.saturating_mul(2)));
        if asking.asked.access == Access::Personal || !xfetch::refresh_early(standing, self.beta, rate, rand::random())
        {
            return Ok(Plan::Hit(answer));
        }
        let mark = self.mark(asking.key)?;
        if mark == Some(Mark::Uncacheable) || Mark::is_backing_off(mark, *now) {
            return Ok(Plan::Hit(answer));
        }
        let sequence = self.scope.purge_sequence(asking.key)?;
        Ok(self.refresh(asking, sequence, answer, (Replaced::of(stored), mark)))
    }

    fn serve_stale<Out, D>(
        &self,
        asking: &Asking<'_, impl Sized>,
        sequence: u64,
        (answer, replaces, mark): (Out, Option<Replaced>, Option<Mark>),
        backing_off: bool,
    ) -> Plan<Out, D> {
        self.scope.note(Event::Hit);
        self.scope.note(Event::Stale);
        match backing_off {
            true => Plan::Hit(answer),
            false => self.refresh(asking, sequence, answer, (replaces, mark)),
        }
    }

    /// Begins a refresh if that is possible at once, and else leaves it to another request.
    fn refresh<Out, D>(
        &self,
        asking: &Asking<'_, impl Sized>,
        sequence: u64,
        answer: Out,
        known: (Option<Replaced>, Option<Mark>),
    ) -> Plan<Out, D> {
        match self.join(asking.key, sequence) {
            Role::Lead(lead) => Plan::Refresh(answer, self.computation(asking, lead, known, Duration::ZERO)),
            Role::Follow(_) | Role::Ended(_) => Plan::Hit(answer),
        }
    }

    /// Whether a computation may begin; `None`: the claim must be waited for.
    ///
    /// The winner of a claim looks once more at what is stored: the holder before may have stored it just now.
    pub(super) fn try_claim<Req, Res>(
        &self,
        computation: &mut Computation,
        name: &[u8],
        asked: &Asked<'_, C::Head>,
    ) -> Option<Claimed<C::Response, C::Decoded>>
    where
        C: Codec<Req, Res>,
    {
        let Claim::Asked(claim) = &mut computation.claim else { return Some(Claimed::Begin) };
        let claimed = claim.now()?;
        Some(self.claimed(computation, claimed, name, asked))
    }

    /// As [`try_claim`](Core::try_claim), once the claim has been waited for.
    pub(super) fn claimed<Req, Res>(
        &self,
        computation: &mut Computation,
        claimed: Result<Guard, AcquireError>,
        name: &[u8],
        asked: &Asked<'_, C::Head>,
    ) -> Claimed<C::Response, C::Decoded>
    where
        C: Codec<Req, Res>,
    {
        computation.claim = match claimed {
            Ok(guard) => Claim::Held(guard),
            Err(AcquireError::Cache(_)) => {
                self.scope.note(Event::CacheFailed);
                Claim::Without
            }
            Err(_) => Claim::Without,
        };
        self.look_again(computation, name, asked).unwrap_or(Claimed::Begin)
    }

    fn look_again<Req, Res>(
        &self,
        computation: &mut Computation,
        name: &[u8],
        asked: &Asked<'_, C::Head>,
    ) -> Result<Claimed<C::Response, C::Decoded>, Error>
    where
        C: Codec<Req, Res>,
    {
        let Place { key, name: full, .. } = &computation.place;
        let sequence = match self.read(key, full)? {
            Ok(Hit { value: stored, now, .. }) => {
                let life = stored.entry.life;
                let is_new = computation.replaces.is_none_or(|replaced| replaced.life != life);
                if is_new && life.is_fresh(now) {
                    let replayed = self.replay(&stored, asked, now, |ttl| CacheStatus::Collapsed { ttl });
                    computation.lead.finish(Outcome::Kept(stored));
                    return Ok(Claimed::Instead(match replayed {
                        Replay::Answer(answer) => {
                            self.scope.note(Event::Followed);
                            Plan::Hit(answer)
                        }
                        Replay::Other(_) => self.plan(name, asked),
                        Replay::Unusable => Plan::alone(),
                    }));
                }
                computation.replaces = Replaced::of(&stored);
                self.scope.purge_sequence(key)?
            }
            Err(sequence) => sequence,
        };
        computation.mark = self.mark(key)?;
        if computation.mark == Some(Mark::Uncacheable) {
            computation.lead.finish(Outcome::NotKept { failed: false });
            return Ok(Claimed::Instead(Plan::Alone { bridge: None, marked: true }));
        }
        computation.lead.begin(sequence);
        Ok(Claimed::Begin)
    }
}

/// What a claim leads to.
pub(super) enum Claimed<Out, D> {
    /// The computation may begin.
    Begin,
    /// Another has computed the answer, or there is none to keep.
    Instead(Plan<Out, D>),
}

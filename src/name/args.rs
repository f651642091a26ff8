use std::{any::type_name, sync::Arc};

use serde::ser::Serialize;

use crate::log_limit::LogLimit;

use super::{
    buf::NameBuf,
    traits::{Name, Named},
};

mod encode;
mod unnamed;

use self::encode::Encoder;

/// Names a plain request by its value, as `serde` sees it: the default name of a memoized service.
///
/// Requests that serialize to different values have different names, whatever they hold. Maps are sorted by key, so the
/// order of a `HashMap` makes no difference; sequences are not, so a `HashSet` has many names, and a `BTreeSet` should
/// take its place. Numbers compare by value: `1_u8`, `1_i64` and `1.0` are alike, unless [`typed`](Self::typed).
///
/// A name is as long as the encoded request. Requests that cannot be named [pass](Named::Pass), since two different
/// ones must never share an answer, and are logged at most once a second: where `Serialize` fails, where values are
/// nested more than 128 deep, and past 16 MiB.
///
/// ```
/// use tower_floodgate::name::{Args, Name, NameBuf, Named};
///
/// #[derive(serde::Serialize)]
/// struct Report<'a> {
///     region: &'a str,
///     year: u16,
///     trace_id: u64,
/// }
///
/// let mut buf = NameBuf::new();
/// let report = Report { region: "north", year: 2026, trace_id: 42 };
/// assert_eq!(Args::new().ignore(["trace_id"]).name(&report, &mut buf), Named::Yes);
/// assert_eq!(buf.as_bytes(), b"<6:region,s5:north,4:year,i2026;>");
/// ```
#[derive(Clone, Debug, Default)]
pub struct Args {
    ignored: Arc<[Box<str>]>,
    typed: bool,
}

impl Args {
    /// By the whole request.
    pub fn new() -> Self {
        Self::default()
    }

    /// Leaves these parts of the request out: fields of a struct by name, entries of a map by key, elements of a tuple
    /// by position (`"0"`, `"1"`, ...). Adds to what was ignored before.
    ///
    /// Only the outermost level counts, seen through newtypes, `Some` and enum variants.
    #[must_use]
    pub fn ignore<S: AsRef<str>>(mut self, parts: impl IntoIterator<Item = S>) -> Self {
        self.ignored = self.ignored.iter().cloned().chain(parts.into_iter().map(|p| p.as_ref().into())).collect();
        self
    }

    /// Adds types to the name: that of the request (as [`std::any::type_name`] spells it, so another version of the
    /// compiler or of the crate may give other names) and that of every number.
    #[must_use]
    pub fn typed(mut self) -> Self {
        self.typed = true;
        self
    }
}

impl<Req: Serialize> Name<Req> for Args {
    fn name(&self, req: &Req, name: &mut NameBuf) -> Named {
        static LIMIT: LogLimit = LogLimit::new();
        if self.typed {
            name.push_part(type_name::<Req>().as_bytes());
        }
        match req.serialize(Encoder::new(name, self.typed, &self.ignored)) {
            Ok(()) => Named::Yes,
            Err(unnamed) => {
                if LIMIT.allows() {
                    let request = type_name::<Req>();
                    tracing::warn!(request, error = %unnamed, "requests pass because they cannot be named");
                }
                Named::Pass
            }
        }
    }
}

#[cfg(test)]
mod tests;

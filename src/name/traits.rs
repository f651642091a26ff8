//! What names a request: [`Name`], and [`IntoName`] for what closures answer.

use super::buf::NameBuf;
use std::{
    borrow::Cow,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

/// Derives the name a request is counted, locked or cached under.
///
/// Implemented by closures from `&Req` to an [`IntoName`], by text, by tuples of names, by `Arc<impl Name>` and by the
/// ready-made names of [this module](super).
///
/// Requests whose names are equal share one answer in a cache, so a name must hold everything that the answer depends
/// on; write parts that come from outside with [`NameBuf::push_part`], so that no client can spell another's name.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not name requests of type `{Req}`",
    note = "a name is text, a closure `|req: &{Req}| ...` that answers an `IntoName`, a tuple of names, \
            or a type that implements `Name<{Req}>`"
)]
pub trait Name<Req> {
    /// Appends the name of `req` to `name`, or lets the request pass.
    ///
    /// What an implementation appended before it answered [`Named::Pass`] means nothing.
    fn name(&self, req: &Req, name: &mut NameBuf) -> Named;
}

/// Whether a [`Name`] gave a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a request whose name passes must not be counted, locked or cached"]
pub enum Named {
    /// The name is in the buffer.
    Yes,
    /// The request is none of the layer's business: it goes to the inner service untouched.
    Pass,
}

/// What a naming closure may answer.
///
/// `None` lets the request pass, untouched and unlimited. A closure that merely cannot tell should answer a name of its
/// own instead.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a name",
    note = "a naming closure answers text, bytes, a number, an address, a tuple of those, \
            or an `Option`, whose `None` lets the request pass"
)]
pub trait IntoName {
    /// Appends itself to `name`, or lets the request pass.
    fn into_name(self, name: &mut NameBuf) -> Named;
}

impl<Req, F, N> Name<Req> for F
where
    F: Fn(&Req) -> N,
    N: IntoName,
{
    fn name(&self, req: &Req, name: &mut NameBuf) -> Named {
        self(req).into_name(name)
    }
}

/// One name for all requests, the empty one: what throttles and barriers go by unless told otherwise.
///
/// A type of its own rather than `""`, because rustc may refuse to spawn a future that holds a service with a lifetime in
/// its type, even `'static` ("implementation is not general enough"). Where that happens to a `&str` of yours, a
/// [`String`] will do.
#[derive(Clone, Copy, Debug, Default)]
pub struct All;

impl<Req> Name<Req> for All {
    fn name(&self, _: &Req, _: &mut NameBuf) -> Named {
        Named::Yes
    }
}

impl<Req> Name<Req> for &str {
    fn name(&self, _: &Req, name: &mut NameBuf) -> Named {
        self.into_name(name)
    }
}

impl<Req> Name<Req> for String {
    fn name(&self, _: &Req, name: &mut NameBuf) -> Named {
        self.as_str().into_name(name)
    }
}

impl<Req, N: Name<Req> + ?Sized> Name<Req> for Arc<N> {
    fn name(&self, req: &Req, name: &mut NameBuf) -> Named {
        N::name(self, req, name)
    }
}

/// A name that writes itself into the buffer, made by [`from_fn`].
#[derive(Clone, Copy)]
pub struct FromFn<F>(F);

/// Makes a name of a closure that writes into the buffer, and so can use what it borrows from the request.
///
/// ```
/// use http::Request;
/// use tower_floodgate::name::{self, Name, NameBuf, Named};
///
/// let by_path = name::from_fn(|req: &Request<()>, name: &mut NameBuf| {
///     name.push_str(req.uri().path());
///     Named::Yes
/// });
///
/// let mut buf = NameBuf::new();
/// assert_eq!(by_path.name(&Request::get("/list").body(()).unwrap(), &mut buf), Named::Yes);
/// assert_eq!(buf.as_bytes(), b"/list");
/// ```
pub fn from_fn<Req, F>(write: F) -> FromFn<F>
where
    F: Fn(&Req, &mut NameBuf) -> Named,
{
    FromFn(write)
}

impl<Req, F> Name<Req> for FromFn<F>
where
    F: Fn(&Req, &mut NameBuf) -> Named,
{
    fn name(&self, req: &Req, name: &mut NameBuf) -> Named {
        (self.0)(req, name)
    }
}

impl<F> fmt::Debug for FromFn<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FromFn").finish_non_exhaustive()
    }
}

/// Tuples: each part with its length, so that ("a", "bc") and ("ab", "c") never meet. If one part passes, all pass.
macro_rules! tuples {
    ($(($($part:ident)+))+) => {$(
        #[allow(non_snake_case)]
        impl<Req, $($part: Name<Req>),+> Name<Req> for ($($part,)+) {
            fn name(&self, req: &Req, name: &mut NameBuf) -> Named {
                let ($($part,)+) = self;
                $(if name.part_with(|name| $part.name(req, name)) == Named::Pass {
                    return Named::Pass;
                })+
                Named::Yes
            }
        }

        #[allow(non_snake_case)]
        impl<$($part: IntoName),+> IntoName for ($($part,)+) {
            fn into_name(self, name: &mut NameBuf) -> Named {
                let ($($part,)+) = self;
                $(if name.part_with(|name| $part.into_name(name)) == Named::Pass {
                    return Named::Pass;
                })+
                Named::Yes
            }
        }
    )+};
}

tuples! { (A B) (A B C) (A B C D) }

macro_rules! as_bytes {
    ($($type:ty),+) => {$(
        impl IntoName for $type {
            fn into_name(self, name: &mut NameBuf) -> Named {
                name.push_bytes(self.as_ref());
                Named::Yes
            }
        }
    )+};
}

as_bytes! { &[u8], Vec<u8>, Box<[u8]>, Arc<[u8]>, Cow<'_, [u8]> }

macro_rules! as_text {
    ($($type:ty),+) => {$(
        impl IntoName for $type {
            fn into_name(self, name: &mut NameBuf) -> Named {
                name.push_str(self.as_ref());
                Named::Yes
            }
        }
    )+};
}

as_text! { &str, String, Box<str>, Arc<str>, Cow<'_, str> }

impl<const N: usize> IntoName for [u8; N] {
    fn into_name(self, name: &mut NameBuf) -> Named {
        self.as_slice().into_name(name)
    }
}

macro_rules! as_display {
    ($($type:ty),+) => {$(
        impl IntoName for $type {
            fn into_name(self, name: &mut NameBuf) -> Named {
                name.push_fmt(format_args!("{self}"));
                Named::Yes
            }
        }
    )+};
}

as_display! { u8, u16, u32, u64, u128, usize, i8, i16, i32, i64, i128, isize, bool, char, IpAddr, Ipv4Addr, Ipv6Addr }

impl<T: IntoName> IntoName for Option<T> {
    fn into_name(self, name: &mut NameBuf) -> Named {
        self.map_or(Named::Pass, |some| some.into_name(name))
    }
}

/// The name of a request, written out; `None`: it passes.
pub(crate) fn written<Req>(name: &impl Name<Req>, request: &Req) -> Option<NameBuf> {
    let mut buffer = NameBuf::new();
    (name.name(request, &mut buffer) == Named::Yes).then_some(buffer)
}

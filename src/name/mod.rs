//! Names: what a request is counted, locked or cached under.
//!
//! A [`Name`] looks at a request and writes a name for it into a [`NameBuf`]; requests with one name share a budget, a
//! lock or an answer. Anything of these is a name:
//!
//! - [`All`], a `&str` or a [`String`]: one name for all requests;
//! - a closure or function from `&Req` to something of its own that is [`IntoName`]: text, bytes, a number, an address
//!   (`|r: &Request<_>| r.uri().path().to_owned()`; text borrowed from the request does not compile, see `from_fn`);
//! - [`from_fn`], for a closure that writes into the buffer itself and so need not allocate;
//! - the ready-made names: [`Target`], [`Path`], [`ClientIp`], [`Header`], [`ApiKey`], [`extension`], [`GrpcMethod`] and
//!   [`ByBody`] for HTTP, [`Args`] for requests that are `serde::Serialize`;
//! - a tuple of two to four names, whose parts can never run into each other.
//!
//! A name may also let a request [`Pass`](Named::Pass) untouched, past the layer. That is always said on purpose: a
//! ready-made name that cannot tell (no peer address, no such header) answers one name shared by all such requests.
//!
//! ```
//! use http::Request;
//! use tower_floodgate::name::{Args, ClientIp, GrpcMethod, Header, Name, NameBuf, Named, Target};
//!
//! fn name_of<Req>(name: impl Name<Req>, req: &Req) -> Option<String> {
//!     let mut buf = NameBuf::new();
//!     match name.name(req, &mut buf) {
//!         Named::Yes => Some(buf.to_string()),
//!         Named::Pass => None,
//!     }
//! }
//!
//! let req = Request::get("https://Example.com/list?page=2&lang=en&utm_source=mail").body(()).unwrap();
//!
//! let target = Target::new().ignore(["utm_*"]);
//! assert_eq!(name_of(target, &req).unwrap(), "GET https://example.com/list?lang=en&page=2");
//!
//! // None lets the request pass: here, everything outside /list.
//! let closure = |req: &Request<()>| req.uri().path().strip_prefix("/list").map(str::to_owned);
//! assert_eq!(name_of(closure, &req).unwrap(), "");
//!
//! // No peer address and no such header: shared names, never "unlimited".
//! let both = (ClientIp::new(), Header::new("x-api-key"));
//! assert_eq!(name_of(both, &req).unwrap(), "14:unknown client,10:x-api-key=,");
//!
//! // The arguments of a plain service.
//! assert_eq!(name_of(Args::new(), &("alice", 3)).unwrap(), "(s5:alice,i3;)");
//! ```

mod args;
mod body;
mod buf;
mod client;
mod header;
mod key;
mod networks;
mod target;
#[cfg(test)]
mod tests;
mod traits;

pub use args::Args;
pub use body::{BodyDigest, ByBody};
pub use buf::NameBuf;
pub use client::{ClientIp, PeerAddr};
pub(crate) use header::header_name;
pub use header::{Ext, GrpcMethod, Header, Path, extension};
pub use key::ApiKey;
pub use networks::{Networks, NetworksError};
pub use target::Target;
pub(crate) use target::announces_body;
pub(crate) use traits::written;
pub use traits::{All, FromFn, IntoName, Name, Named, from_fn};

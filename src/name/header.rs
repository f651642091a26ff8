use std::{any::type_name, fmt, marker::PhantomData};

use http::{HeaderMap, HeaderName, Request};

use crate::log_limit::LogLimit;

use super::{
    buf::NameBuf,
    traits::{IntoName, Name, Named},
};

/// Appends `name=` and every value of that header as a part: nothing for an absent header, `0:,` for an empty one.
pub(super) fn push_header(headers: &HeaderMap, header: &HeaderName, name: &mut NameBuf) {
    push_header_name(header, name);
    for value in headers.get_all(header) {
        name.push_part(value.as_bytes());
    }
}

pub(super) fn push_header_name(header: &HeaderName, name: &mut NameBuf) {
    name.push_str(header.as_str());
    name.push_byte(b'=');
}

/// Parses the name of a header, for constructors.
#[track_caller]
pub(crate) fn header_name(text: &str) -> HeaderName {
    match HeaderName::from_bytes(text.as_bytes()) {
        Ok(header) => header,
        // Not within a closure, which would hide the caller.
        Err(_) => panic!("not the name of a header: {text:?}"),
    }
}

/// Names an HTTP request by the values of one header.
///
/// Requests without the header share a name of their own, which no value can spell, not even an empty one. All values
/// of a repeated header count, so a service that limits by a key should refuse requests that send it twice.
///
/// The value is part of the name as it is, and names are kept in the cache's directory: for a secret take
/// [`ApiKey`](super::ApiKey).
#[derive(Clone, Debug)]
pub struct Header {
    header: HeaderName,
}

impl Header {
    /// By the header of this name, in any case of letters.
    ///
    /// # Panics
    ///
    /// If `header` is not a valid name of a header.
    #[track_caller]
    pub fn new(header: impl AsRef<str>) -> Self {
        Self { header: header_name(header.as_ref()) }
    }
}

impl<B> Name<Request<B>> for Header {
    fn name(&self, req: &Request<B>, name: &mut NameBuf) -> Named {
        push_header(req.headers(), &self.header, name);
        Named::Yes
    }
}

/// Names an HTTP request by one of its extensions, made by [`extension`].
pub struct Ext<T, F> {
    derive: F,
    // `fn` so that the name is `Send` and `Sync` whatever the extension is.
    extension: PhantomData<fn(&T)>,
}

/// Names an HTTP request by an extension of type `T`: a matched route, a session, a tenant.
///
/// Requests without the extension share a name of their own and are logged, at most once a second: it mostly means that
/// the layer which inserts it runs too late. `None` from the closure lets the request pass.
///
/// ```
/// use http::Request;
/// use tower_floodgate::name::{Name, NameBuf, Named, extension};
///
/// #[derive(Clone)]
/// struct Tenant(u32);
///
/// let by_tenant = extension(|tenant: &Tenant| tenant.0);
///
/// let req = Request::get("/").extension(Tenant(7)).body(()).unwrap();
/// let mut buf = NameBuf::new();
/// assert_eq!(by_tenant.name(&req, &mut buf), Named::Yes);
/// assert_eq!(buf.as_bytes(), b"=7");
/// ```
pub fn extension<T, F, N>(derive: F) -> Ext<T, F>
where
    T: Send + Sync + 'static,
    F: Fn(&T) -> N,
    N: IntoName,
{
    Ext { derive, extension: PhantomData }
}

impl<B, T, F, N> Name<Request<B>> for Ext<T, F>
where
    T: Send + Sync + 'static,
    F: Fn(&T) -> N,
    N: IntoName,
{
    fn name(&self, req: &Request<B>, name: &mut NameBuf) -> Named {
        static LIMIT: LogLimit = LogLimit::new();
        match req.extensions().get::<T>() {
            Some(extension) => {
                name.push_byte(b'=');
                (self.derive)(extension).into_name(name)
            }
            None => {
                if LIMIT.allows() {
                    tracing::warn!(extension = type_name::<T>(), "requests without this extension share one name");
                }
                name.push_str("missing");
                Named::Yes
            }
        }
    }
}

impl<T, F: Clone> Clone for Ext<T, F> {
    fn clone(&self) -> Self {
        Self { derive: self.derive.clone(), extension: PhantomData }
    }
}

impl<T, F> fmt::Debug for Ext<T, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ext").field("extension", &type_name::<T>()).finish_non_exhaustive()
    }
}

/// Names a gRPC request by its method, `/package.Service/Method`, which is the path of its URI.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct GrpcMethod;

impl GrpcMethod {
    /// By the method that is called.
    pub const fn new() -> Self {
        Self
    }
}

impl<B> Name<Request<B>> for GrpcMethod {
    fn name(&self, req: &Request<B>, name: &mut NameBuf) -> Named {
        name.push_str(req.uri().path());
        Named::Yes
    }
}

/// Names an HTTP request by the path of its URI, as it is: without method, host and query, so for throttles and barriers.
///
/// Within axum's `Router::nest` the path has lost its prefix.
#[derive(Clone, Copy, Debug, Default)]
pub struct Path;

impl<B> Name<Request<B>> for Path {
    fn name(&self, req: &Request<B>, name: &mut NameBuf) -> Named {
        name.push_str(req.uri().path());
        Named::Yes
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::name_of, *};

    #[test]
    fn a_missing_header_is_unlike_every_value() {
        let key = Header::new("X-Api-Key");
        let req = |values: &[&str]| {
            let mut req = Request::new(());
            for value in values {
                req.headers_mut().append("x-api-key", value.parse().unwrap());
            }
            req
        };
        assert_eq!(name_of(&key, &req(&[])).unwrap(), "x-api-key=");
        assert_eq!(name_of(&key, &req(&[""])).unwrap(), "x-api-key=0:,");
        assert_eq!(name_of(&key, &req(&["abc"])).unwrap(), "x-api-key=3:abc,");
        assert_eq!(name_of(&key, &req(&["a", "b"])).unwrap(), "x-api-key=1:a,1:b,");
        assert_eq!(name_of(&key, &req(&["a,1:b"])).unwrap(), "x-api-key=5:a,1:b,");
    }

    #[test]
    #[should_panic(expected = "not the name of a header: \"x api\"")]
    fn a_bad_header_name_panics() {
        let _ = Header::new("x api");
    }

    #[test]
    fn a_missing_extension_is_unlike_every_value() {
        #[derive(Clone)]
        struct User(&'static str);
        let by_user = extension(|user: &User| user.0);
        let mut req = Request::new(());
        assert_eq!(name_of(&by_user, &req).unwrap(), "missing");
        req.extensions_mut().insert(User("missing"));
        assert_eq!(name_of(&by_user, &req).unwrap(), "=missing");
        let some = extension(|_: &User| None::<String>);
        assert_eq!(name_of(&some, &req), None);
        assert_eq!(name_of(&some.clone(), &Request::new(())).unwrap(), "missing");
    }

    #[test]
    fn a_grpc_method_is_the_path() {
        let req = Request::post("http://host/pkg.Greeter/Hello").body(()).unwrap();
        assert_eq!(name_of(&GrpcMethod::new(), &req).unwrap(), "/pkg.Greeter/Hello");
    }
}

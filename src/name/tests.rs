use http::Request;
use proptest::{prelude::*, test_runner::RngSeed};
use std::{borrow::Cow, net::IpAddr, sync::Arc};

use super::*;
use crate::log_limit::LogLimit;

/// The name of `req`, `None` where it passes.
pub(super) fn name_of<Req>(name: &impl Name<Req>, req: &Req) -> Option<String> {
    bytes_of(name, req).map(|bytes| String::from_utf8(bytes).unwrap())
}

pub(super) fn bytes_of<Req>(name: &impl Name<Req>, req: &Req) -> Option<Vec<u8>> {
    let mut buf = NameBuf::new();
    (name.name(req, &mut buf) == Named::Yes).then(|| buf.as_bytes().to_vec())
}

fn path<B>(req: &Request<B>) -> String {
    req.uri().path().to_owned()
}

#[test]
fn text_closures_and_functions_are_names() {
    let req = Request::get("/a").body(()).unwrap();
    assert_eq!(name_of(&"all", &req).unwrap(), "all");
    assert_eq!(name_of(&String::from("all"), &req).unwrap(), "all");
    assert_eq!(name_of(&|r: &Request<_>| r.uri().path().len(), &req).unwrap(), "2");
    assert_eq!(name_of(&(path as fn(&Request<()>) -> String), &req).unwrap(), "/a");
    assert_eq!(name_of(&path::<()>, &req).unwrap(), "/a");
    assert_eq!(name_of(&|_: &Request<()>| ("a", 7u8), &req).unwrap(), "1:a,1:7,");
    let shared: Arc<dyn Name<Request<()>> + Send + Sync> = Arc::new("all");
    assert_eq!(name_of(&shared, &req).unwrap(), "all");
}

#[test]
fn closures_answer_many_types() {
    assert_eq!(name_of(&|n: &u8| *n, &7).unwrap(), "7");
    assert_eq!(name_of(&|_: &u8| IpAddr::from([1, 2, 3, 4]), &7).unwrap(), "1.2.3.4");
    assert_eq!(name_of(&|_: &u8| Cow::Borrowed("x"), &7).unwrap(), "x");
    assert_eq!(bytes_of(&|_: &u8| vec![0xff, 0], &7).unwrap(), [0xff, 0]);
    assert_eq!(name_of(&|n: &u8| (*n > 7).then_some("big"), &7), None);
    assert_eq!(name_of(&|n: &u8| (*n > 7).then_some("big"), &8).unwrap(), "big");
}

/// What a layer does with a name: the body type of a `Request<_>` closure is found from the use.
struct Layer<N>(N);

impl<N> Layer<N> {
    fn name<M>(self, name: M) -> Layer<M> {
        Layer(name)
    }

    fn call<Req>(&self, req: &Req) -> Option<String>
    where
        N: Name<Req>,
    {
        name_of(&self.0, req)
    }
}

#[test]
fn a_closure_fits_a_builder() {
    let layer = Layer("all").name(|r: &Request<_>| r.uri().path().to_owned());
    assert_eq!(layer.call(&Request::get("/a").body("body").unwrap()).unwrap(), "/a");
}

#[test]
fn one_part_that_passes_lets_all_pass() {
    let none = |_: &u8| None::<String>;
    assert_eq!(name_of(&("a", none), &1), None);
    assert_eq!(name_of(&(none, "a", "b"), &1), None);
    assert_eq!(name_of(&("a", "b", "c", none), &1), None);
    assert_eq!(name_of(&("a", "bc"), &1).unwrap(), "1:a,2:bc,");
    assert_eq!(name_of(&("ab", "c"), &1).unwrap(), "2:ab,1:c,");
}

#[test]
fn names_fit_every_host() {
    fn fits<T: Clone + Send + Sync + std::fmt::Debug + 'static>(_: &T) {}
    fits(&NameBuf::new());
    fits(&Target::new());
    fits(&ClientIp::new());
    fits(&Header::new("a"));
    fits(&ApiKey::bearer());
    fits(&Networks::default());
    fits(&GrpcMethod::new());
    fits(&Args::new());
    fits(&from_fn(|_: &u8, _: &mut NameBuf| Named::Yes));
    fits(&extension(|n: &u8| *n));
}

#[test]
fn a_line_a_second() {
    let limit = LogLimit::new();
    assert!(limit.allows_at(5));
    assert!(!limit.allows_at(6));
    assert!(!limit.allows_at(1004));
    assert!(limit.allows_at(1005));
    assert!(!limit.allows_at(1005));
}

proptest! {
    #![proptest_config(ProptestConfig { rng_seed: RngSeed::Fixed(8), failure_persistence: None, ..Default::default() })]

    #[test]
    fn parts_of_tuples_never_run_together(
        [a, b, c, d] in ["[a1:,]{0,12}", "[a1:,]{0,12}", "[a1:,]{0,12}", "[a1:,]{0,12}"],
    ) {
        let pair = |x: String, y: String| name_of(&(move |_: &u8| x.clone(), move |_: &u8| y.clone()), &0).unwrap();
        let one = pair(a.clone(), b.clone());
        let other = pair(c.clone(), d.clone());
        prop_assert_eq!(one == other, (a, b) == (c, d));
    }
}

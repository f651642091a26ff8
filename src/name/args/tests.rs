use std::collections::{BTreeMap, HashMap};

use proptest::{prelude::*, test_runner::RngSeed};
use serde::{
    Serialize, Serializer,
    ser::{self, SerializeMap},
};

use super::{
    super::tests::{bytes_of, name_of},
    unnamed::{MAX_DEPTH, MAX_LEN},
    *,
};

fn name<T: Serialize>(value: T) -> String {
    name_of(&Args::new(), &value).unwrap()
}

fn typed<T: Serialize>(value: T) -> String {
    name_of(&Args::new().typed(), &value).unwrap()
}

#[derive(Serialize, Clone)]
struct Point {
    x: i32,
    y: i32,
}

#[derive(Serialize)]
struct Meters(f64);

#[derive(Serialize)]
struct Pair(u8, u8);

#[derive(Serialize)]
struct Nothing;

#[derive(Serialize)]
enum Shape {
    Empty,
    Dot(Point),
    Line(u8, u8),
    Disc { x: u8, r: u8 },
}

#[test]
fn every_kind_of_value() {
    assert_eq!(name(()), "u");
    assert_eq!(name(Nothing), "u");
    assert_eq!(name((true, false)), "(tf)");
    assert_eq!(name((None::<u8>, Some(1))), "(noi1;)");
    assert_eq!(name(Some(None::<u8>)), "on");
    assert_eq!(name(('a', "a")), "(c1:a,s1:a,)");
    assert_eq!(name(vec![1, -2]), "[i1;i-2;]");
    assert_eq!(name(Point { x: 1, y: 2 }), "<1:x,i1;1:y,i2;>");
    assert_eq!(name(Meters(0.5)), "d0.5;");
    assert_eq!(name(Pair(1, 2)), "(i1;i2;)");
    assert_eq!(name(Shape::Empty), "v5:Empty,");
    assert_eq!(name(Shape::Dot(Point { x: 1, y: 2 })), "w3:Dot,<1:x,i1;1:y,i2;>");
    assert_eq!(name(Shape::Line(1, 2)), "x4:Line,(i1;i2;)");
    assert_eq!(name(Shape::Disc { x: 1, r: 2 }), "y4:Disc,<1:x,i1;1:r,i2;>");
    assert_eq!(name(format_args!("{}-{}", 1, 2)), "s3:1-2,");
    assert_eq!(name(std::net::Ipv4Addr::LOCALHOST), "s9:127.0.0.1,");
}

#[test]
fn numbers_compare_by_value() {
    for one in [name(1_u8), name(1_i64), name(1_u128), name(1.0_f32), name(1.0_f64)] {
        assert_eq!(one, "i1;");
    }
    assert_eq!(name(-0.0), name(0));
    assert_eq!(name(-3.0), name(-3));
    assert_eq!(name(2f64.powi(127)), name(1_u128 << 127));
    assert_eq!(name(-(2f64.powi(127))), name(i128::MIN));
    assert_ne!(name(2f64.powi(128)), name(u128::MAX));
    assert_ne!(name(0.1_f32), name(0.1_f64));
    assert_eq!(name(0.5_f32), name(0.5_f64));
    assert_eq!(name((f64::NAN, f64::INFINITY, f64::NEG_INFINITY)), "(dNaN;dinf;d-inf;)");
    assert_ne!(name(1), name(true));
    assert_ne!(name(1), name("1"));
}

#[test]
fn typed_names_tell_types_apart() {
    let names = [
        typed(1_u8),
        typed(1_i64),
        typed(1.0_f32),
        typed(1.0_f64),
        typed(Some(1_u8)),
        typed(Meters(1.0)),
        typed(0.0_f64),
        typed(-0.0_f64),
    ];
    for (i, one) in names.iter().enumerate() {
        assert!(names[i + 1..].iter().all(|other| other != one), "{one}");
    }
    assert_eq!(typed(7_u8), "2:u8,i7u8;");
    assert_eq!(typed(7.0_f32), "3:f32,d7f32;");
}

#[test]
fn the_order_of_a_map_makes_no_difference() {
    let pairs: Vec<(String, usize)> = (0..50).map(|i| ("k".repeat(i % 9) + &i.to_string(), i)).collect();
    let ordered: BTreeMap<_, _> = pairs.iter().cloned().collect();
    for _ in 0..5 {
        let hashed: HashMap<_, _> = pairs.iter().rev().cloned().collect();
        assert_eq!(name((&hashed, 1)), name((&ordered, 1)));
    }
    assert_eq!(name(BTreeMap::from([("bb", 1), ("a", 2)])), "{s1:a,i2;s2:bb,i1;}");
    let nested = |order: [u8; 2]| order.map(|key| (key, HashMap::from(order.map(|key| (key, "v")))));
    assert_eq!(name(HashMap::from(nested([1, 2]))), name(HashMap::from(nested([2, 1]))));
}

#[test]
fn ignored_parts_are_left_out() {
    let ignoring = |parts: &[&str]| Args::new().ignore(parts);
    let point = Point { x: 1, y: 2 };
    assert_eq!(name_of(&ignoring(&["y"]), &point).unwrap(), "<1:x,i1;>");
    assert_eq!(name_of(&ignoring(&["y"]).ignore(["x"]), &point).unwrap(), "<>");
    assert_eq!(name_of(&ignoring(&["y"]), &Some(point.clone())).unwrap(), "o<1:x,i1;>");
    assert_eq!(name_of(&ignoring(&["x"]), &Shape::Dot(point.clone())).unwrap(), "w3:Dot,<1:y,i2;>");
    assert_eq!(name_of(&ignoring(&["r"]), &Shape::Disc { x: 1, r: 2 }).unwrap(), "y4:Disc,<1:x,i1;>");
    assert_eq!(name_of(&ignoring(&["1"]), &("a", "b", "c")).unwrap(), "(s1:a,s1:c,)");
    assert_eq!(name_of(&ignoring(&["0"]), &Pair(1, 2)).unwrap(), "(i2;)");
    assert_eq!(name_of(&ignoring(&["b"]), &BTreeMap::from([("a", 1), ("b", 2)])).unwrap(), "{s1:a,i1;}");
    assert_eq!(name_of(&ignoring(&["-2"]), &BTreeMap::from([(1, 1), (-2, 2)])).unwrap(), "{i1;i1;}");
    let typed = ignoring(&["2"]).typed();
    assert!(name_of(&typed, &BTreeMap::from([(1_u8, 1_u8), (2, 2)])).unwrap().ends_with("{i1u8;i1u8;}"));
    // Only the outermost level, and no elements of sequences.
    assert_eq!(name_of(&ignoring(&["x"]), &(1, &point)).unwrap(), "(i1;<1:x,i1;1:y,i2;>)");
    assert_eq!(name_of(&ignoring(&["0"]), &vec![1, 2]).unwrap(), "[i1;i2;]");
}

#[test]
fn short_arguments_stay_on_the_stack() {
    let mut buf = NameBuf::new();
    let value = ("x".repeat(100), BTreeMap::from([("a", 1), ("b", 2)]));
    assert_eq!(Args::new().name(&value, &mut buf), Named::Yes);
    assert!(buf.len() <= 256);
}

struct Fails;

impl Serialize for Fails {
    fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(ser::Error::custom("no"))
    }
}

struct Deep(usize);

impl Serialize for Deep {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            0 => serializer.serialize_unit(),
            depth if depth % 3 == 0 => serializer.serialize_some(&Deep(depth - 1)),
            depth if depth % 3 == 1 => serializer.serialize_newtype_struct("Deep", &Deep(depth - 1)),
            depth => [Deep(depth - 1)].serialize(serializer),
        }
    }
}

struct Unpaired(fn(&mut dyn FnMut(bool)));

impl Serialize for Unpaired {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(usize::MAX))?;
        let mut outcome = Ok(());
        (self.0)(&mut |key| {
            let next = if key { map.serialize_key(&1) } else { map.serialize_value(&1) };
            outcome = std::mem::replace(&mut outcome, Ok(())).and(next);
        });
        outcome?;
        map.end()
    }
}

#[test]
fn what_cannot_be_named_passes() {
    assert_eq!(name_of(&Args::new(), &Fails), None);
    assert_eq!(name_of(&Args::new(), &(1, Fails)), None);
    assert!(name_of(&Args::new(), &Deep(MAX_DEPTH)).is_some());
    assert_eq!(name_of(&Args::new(), &Deep(MAX_DEPTH + 1)), None);
    assert_eq!(name_of(&Args::new(), &Deep(usize::MAX)), None);
    assert!(name_of(&Args::new(), &"x".repeat(MAX_LEN - 20)).is_some());
    assert_eq!(name_of(&Args::new(), &"x".repeat(MAX_LEN + 1)), None);
    assert_eq!(name_of(&Args::new(), &vec!["x".repeat(1 << 20); 17]), None);
    assert_eq!(name_of(&Args::new(), &Unpaired(|call| call(false))), None);
    assert_eq!(name_of(&Args::new(), &Unpaired(|call| call(true))), None);
    assert_eq!(name_of(&Args::new(), &Unpaired(|call| [true, true].into_iter().for_each(call))), None);
    assert_eq!(name_of(&Args::new(), &Unpaired(|call| [true, false].into_iter().for_each(call))).unwrap(), "{i1;i1;}");
}

/// Any value. Equal ones are equal to a reader who does not care for the types of numbers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Value {
    Unit,
    Bool(bool),
    /// An integer, and how to spell it.
    Int(i8, Spelling),
    /// A number of halves, which is never integral.
    Halves(i8, bool),
    Char(char),
    Text(String),
    Bytes(Vec<u8>),
    None,
    Some(Box<Value>),
    Seq(Vec<Value>),
    Tuple(Box<(Value, Value)>),
    Map(BTreeMap<Value, Value>),
    Variant(&'static str, Box<Value>),
}

#[derive(Clone, Copy, Debug)]
enum Spelling {
    I8,
    I64,
    I128,
    F32,
    F64,
}

impl PartialEq for Spelling {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Spelling {}

impl PartialOrd for Spelling {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Spelling {
    fn cmp(&self, _: &Self) -> std::cmp::Ordering {
        std::cmp::Ordering::Equal
    }
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Unit => serializer.serialize_unit(),
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::Int(value, Spelling::I8) => serializer.serialize_i8(*value),
            Self::Int(value, Spelling::I64) => serializer.serialize_i64((*value).into()),
            Self::Int(value, Spelling::I128) => serializer.serialize_i128((*value).into()),
            Self::Int(value, Spelling::F32) => serializer.serialize_f32((*value).into()),
            Self::Int(value, Spelling::F64) => serializer.serialize_f64((*value).into()),
            Self::Halves(value, true) => serializer.serialize_f32(f32::from(*value) + 0.5),
            Self::Halves(value, false) => serializer.serialize_f64(f64::from(*value) + 0.5),
            Self::Char(value) => serializer.serialize_char(*value),
            Self::Text(value) => serializer.serialize_str(value),
            Self::Bytes(value) => serializer.serialize_bytes(value),
            Self::None => serializer.serialize_none(),
            Self::Some(value) => serializer.serialize_some(value),
            Self::Seq(values) => values.serialize(serializer),
            Self::Tuple(pair) => pair.serialize(serializer),
            Self::Map(map) => serializer.collect_map(map.iter().rev()),
            Self::Variant(variant, value) => serializer.serialize_newtype_variant("Value", 0, variant, value),
        }
    }
}

fn value() -> impl Strategy<Value = Value> {
    let spelling =
        prop::sample::select(vec![Spelling::I8, Spelling::I64, Spelling::I128, Spelling::F32, Spelling::F64]);
    let leaf = prop_oneof![
        Just(Value::Unit),
        Just(Value::None),
        any::<bool>().prop_map(Value::Bool),
        (-2_i8..3, spelling).prop_map(|(value, spelling)| Value::Int(value, spelling)),
        (-2_i8..3, Just(true)).prop_map(|(value, single)| Value::Halves(value, single)),
        prop::char::range('a', 'c').prop_map(Value::Char),
        "[a1:,;]{0,3}".prop_map(Value::Text),
        prop::collection::vec(prop::sample::select(b"a1:,".to_vec()), 0..3).prop_map(Value::Bytes),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            inner.clone().prop_map(|value| Value::Some(Box::new(value))),
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::Seq),
            (inner.clone(), inner.clone()).prop_map(|pair| Value::Tuple(Box::new(pair))),
            prop::collection::btree_map(inner.clone(), inner.clone(), 0..3).prop_map(Value::Map),
            (prop::sample::select(vec!["a", "b"]), inner)
                .prop_map(|(name, value)| Value::Variant(name, Box::new(value))),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, rng_seed: RngSeed::Fixed(11), failure_persistence: None, ..Default::default() })]

    #[test]
    fn names_are_equal_exactly_when_the_values_are(one in value(), other in value()) {
        let args = Args::new();
        prop_assert_eq!(bytes_of(&args, &one) == bytes_of(&args, &other), one == other);
    }

    #[test]
    fn values_do_not_run_together(
        one in prop::collection::vec(value(), 0..3),
        other in prop::collection::vec(value(), 0..3),
    ) {
        let run = |values: &[Value]| -> Vec<u8> {
            values.iter().flat_map(|value| bytes_of(&Args::new(), value).unwrap()).collect()
        };
        prop_assert_eq!(run(&one) == run(&other), one == other);
    }

    #[test]
    fn numbers_that_differ_have_different_names(one in any::<f64>(), other in any::<f64>(), integer in any::<i64>()) {
        prop_assert_eq!(name(one) == name(other), one == other);
        prop_assert_eq!(name(integer) == name(integer as f64), integer as f64 as i128 == i128::from(integer));
    }
}
